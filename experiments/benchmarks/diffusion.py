"""Compare the U-Net, the autoencoder's decoder and sampling with diffusers on PyTorch: equal weights, in turn.

    make parity                                                        # makes .venv-parity, with JAX and torch
    .venv-parity/bin/python experiments/benchmarks/diffusion.py
    .venv-parity/bin/python experiments/benchmarks/diffusion.py --device cuda --full    # 512 pixels, bfloat16, a GPU

On a CPU in float32: a tiny U-Net (two levels of 32 and 64 channels, latents 16 x 16) and Stable Diffusion's at a
quarter of its width (80 to 320 channels, latents 32 x 32), both with 32 embeddings as conditioning; then ten guided
PNDM steps of the tiny one. Prints medians in milliseconds, the ratio torch / ours (above 1: ours is faster), and the
largest difference of the two results as a fraction of the largest value.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from emu_jax.convert.visual_decoder import load_visual_decoder
from emu_jax.diffusion.decoder import VisualDecoder

QUERIES, STEPS, GUIDANCE = 32, 10, 7.5
CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
TINY = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": CROSS[:1] * 2,
    "up_block_types": CROSS[1:] * 2,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
    "cross_attention_dim": 128,
}
QUARTER = {"sample_size": 32, "block_out_channels": (80, 160, 320, 320), "norm_num_groups": 16,
           "cross_attention_dim": 1280}  # fmt: skip
FULL = {"sample_size": 64, "cross_attention_dim": 5120}
SMALL_VAE = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "sample_size": 64,
}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
             "set_alpha_to_one": False, "skip_prk_steps": True}  # fmt: skip


class Pair:
    """A decoder in both libraries: the modules of diffusers, and ours read from the folder that they saved."""

    def __init__(self, unet: dict[str, Any], vae: dict[str, Any], *, device: str, half: bool) -> None:
        torch.manual_seed(0)
        self.device, self.dtype = device, torch.bfloat16 if half else torch.float32
        self.unet = diffusers.UNet2DConditionModel(**unet).eval()
        self.vae = diffusers.AutoencoderKL(**vae).eval()
        self.scheduler = diffusers.PNDMScheduler(**SCHEDULER)
        dtype = jnp.bfloat16 if half else jnp.float32
        with tempfile.TemporaryDirectory() as folder:
            for part in ("unet", "vae", "scheduler"):
                getattr(self, part).save_pretrained(Path(folder) / part)
            self.ours: VisualDecoder = load_visual_decoder(folder, dtype=dtype, param_dtype=dtype)
        for module in (self.unet, self.vae):
            module.to(device)
            if half:
                module.to(self.dtype)

    def first(self, array: np.ndarray) -> torch.Tensor:
        """Convert to a tensor with channels first."""
        return torch.from_numpy(np.moveaxis(array, -1, 1).copy()).to(self.device, self.dtype)

    @staticmethod
    def last(tensor: torch.Tensor) -> np.ndarray:
        """Convert to an array with channels last; this waits for the device."""
        return np.moveaxis(tensor.float().cpu().numpy(), 1, -1)

    @torch.no_grad()
    def their_sample(self, latents: np.ndarray, both: np.ndarray, steps: int) -> np.ndarray:
        """Run the sampling loop of the release, with the unconditional half first."""
        self.scheduler.set_timesteps(steps)
        x, embeddings = self.first(latents), torch.from_numpy(both).to(self.device, self.dtype)
        for timestep in self.scheduler.timesteps:
            unconditional, conditional = self.unet(torch.cat([x] * 2), timestep, embeddings).sample.chunk(2)
            guided = unconditional + GUIDANCE * (conditional - unconditional)
            x = self.scheduler.step(guided, timestep, x).prev_sample
        return self.last(x)


def cases(pair: Pair, name: str, *, batch: int, steps: int) -> Iterator[tuple[str, Callable, Callable]]:
    """Yield for each case its name, the function in torch and ours; both return an array to compare."""
    rng = np.random.default_rng(0)
    config = pair.ours.unet.config
    size = config.sample_size

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    latents, embeddings = normal(batch, size, size, 4), normal(2, batch, QUERIES, config.cross_attention_dim)
    timesteps = np.full(batch, 500)
    inputs = pair.first(latents), torch.from_numpy(timesteps), torch.from_numpy(embeddings[1])
    inputs = tuple(x.to(pair.device, pair.dtype if x.is_floating_point() else x.dtype) for x in inputs)

    @torch.no_grad()
    def unet() -> np.ndarray:
        return pair.last(pair.unet(*inputs).sample)

    yield (
        f"{name}: U-Net, batch {batch}",
        unet,
        lambda: pair.ours.predict_noise(latents, timesteps, embeddings[1]),
    )

    @torch.no_grad()
    def decode() -> np.ndarray:
        return pair.last(pair.vae.decode(inputs[0] / pair.vae.config.scaling_factor).sample)

    yield f"{name}: autoencoder's decoder", decode, lambda: pair.ours.decode(latents)
    if steps:
        yield (
            f"{name}: {steps} guided PNDM steps",
            lambda: pair.their_sample(latents, np.concatenate(embeddings), steps),
            lambda: (
                pair.ours.sample(
                    embeddings[1], embeddings[0], latents=latents, steps=steps, guidance_scale=GUIDANCE
                ).latents
            ),
        )


def report(name: str, theirs: Callable[[], Any], ours: Callable[[], Any], *, repeats: int) -> None:
    """Run both once without timing, then time them in turn, and print a line."""
    expected, actual = theirs(), np.asarray(ours())
    difference = np.abs(actual - expected).max() / np.abs(expected).max()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, milliseconds in zip((theirs, ours), times, strict=True):
            start = time.perf_counter()
            np.asarray(run())
            milliseconds.append(1e3 * (time.perf_counter() - start))
    medians = [statistics.median(milliseconds) for milliseconds in times]
    ratio = medians[0] / medians[1]
    print(f"{name:46}{medians[0]:>10.1f}{medians[1]:>10.1f}{ratio:>8.2f}  {difference:.0e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each case")
    parser.add_argument("--device", default="cpu", help="device of torch; JAX uses its default")
    parser.add_argument("--full", action="store_true", help="Stable Diffusion's sizes in bfloat16, 50 steps")
    a = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, jax {jax.__version__} on "
          f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}; "
          f"medians of {a.repeats}\n")  # fmt: skip
    print(f"{'':46}{'torch ms':>10}{'ours ms':>10}{'ratio':>8}  difference")
    if a.full:
        vae = {"block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
               "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "sample_size": 512}  # fmt: skip
        chosen = [("512 pixels", Pair(FULL, vae, device=a.device, half=True), 4, 50)]
    else:
        chosen = [
            ("tiny", Pair(TINY, SMALL_VAE, device=a.device, half=False), 8, STEPS),
            ("quarter", Pair(QUARTER, SMALL_VAE, device=a.device, half=False), 2, 0),
        ]
    for name, pair, batch, steps in chosen:
        for title, theirs, ours in cases(pair, name, batch=batch, steps=steps):
            report(title, theirs, ours, repeats=a.repeats)


if __name__ == "__main__":
    main()
