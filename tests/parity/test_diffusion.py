"""The visual decoder and diffusers: other sizes than the reference's, all samplers, folders in both directions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="requires PyTorch: `make parity`")
diffusers = pytest.importorskip("diffusers", reason="requires diffusers: `make parity`")

from emu_jax.convert.diffusion_table import unet_table  # noqa: E402
from emu_jax.convert.visual_decoder import load_visual_decoder, save_visual_decoder  # noqa: E402
from emu_jax.diffusion.config import UNetConfig  # noqa: E402
from emu_jax.diffusion.decoder import VisualDecoder  # noqa: E402

STEPS = 7
WIDTH = 24
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def unet(**changes) -> diffusers.UNet2DConditionModel:
    torch.manual_seed(0)
    sizes = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 2,
        "cross_attention_dim": WIDTH,
    }
    return diffusers.UNet2DConditionModel(**(sizes | changes)).eval()


def vae(**changes) -> diffusers.AutoencoderKL:
    torch.manual_seed(1)
    sizes = {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 32,
    }
    return diffusers.AutoencoderKL(**(sizes | changes)).eval()


def saved(folder: Path, unet, vae, *, safetensors: bool = True, **scheduler) -> VisualDecoder:
    unet.save_pretrained(folder / "unet", safe_serialization=safetensors)
    vae.save_pretrained(folder / "vae", safe_serialization=safetensors)
    diffusers.PNDMScheduler(skip_prk_steps=True, **(SCHEDULER | scheduler)).save_pretrained(folder / "scheduler")
    return load_visual_decoder(folder)


def first(array: np.ndarray) -> torch.Tensor:
    """Return a tensor with its channels first."""
    return torch.from_numpy(np.moveaxis(array, -1, -3).copy())


def assert_within(ours: object, theirs: torch.Tensor, scale: float = 1e-4) -> None:
    theirs = np.moveaxis(theirs.numpy(), -3, -1)
    assert np.shape(ours) == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= scale * np.abs(theirs).max()


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {"latents": normal(2, 4, 8, 4), "context": normal(2, 5, WIDTH), "null": normal(2, 5, WIDTH)}


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"freq_shift": 1, "flip_sin_to_cos": False, "norm_eps": 1e-4},
        {"use_linear_projection": True, "transformer_layers_per_block": 2, "attention_head_dim": (2, 4)},
        {"block_out_channels": (16, 32, 32), "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
         "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"), "center_input_sample": True},
    ],
)  # fmt: skip
def test_predict_noise(tmp_path, inputs, changes):
    theirs = unet(**changes)
    ours = saved(tmp_path, theirs, vae())
    timesteps = np.array([3, 977])
    expected = theirs(first(inputs["latents"]), torch.from_numpy(timesteps), torch.from_numpy(inputs["context"])).sample
    assert_within(ours.predict_noise(inputs["latents"], timesteps, inputs["context"]), expected)


@torch.no_grad()
@pytest.mark.parametrize("size", [(12, 12), (7, 5), (65, 33), (1, 1)])
def test_sizes_that_do_not_divide_by_the_levels(tmp_path, inputs, size):
    """96 pixels with four levels and 520 pixels with Stable Diffusion: upsampled to the size of the skip connection."""
    levels = {
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    }
    theirs = unet(**levels)
    ours = saved(tmp_path, theirs, vae())
    latents = np.random.default_rng(2).normal(size=(2, *size, 4)).astype(np.float32)
    timesteps = np.array([3, 977])
    expected = theirs(first(latents), torch.from_numpy(timesteps), torch.from_numpy(inputs["context"])).sample
    assert_within(ours.predict_noise(latents, timesteps, inputs["context"]), expected)


@torch.no_grad()
def test_autoencoder_of_two_levels(tmp_path):
    theirs = vae(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=2, latent_channels=3, scaling_factor=0.5,
    )  # fmt: skip
    ours = saved(tmp_path, unet(), theirs)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 12, 16, 3)).astype(np.float32)
    posterior = ours.encode(images)
    expected = theirs.encode(first(images)).latent_dist
    assert_within(posterior.mean, expected.mean)
    assert_within(posterior.log_variance, expected.logvar)
    latents = np.asarray(posterior.mean) * 0.5
    assert_within(ours.decode(latents), theirs.decode(first(latents) / 0.5).sample)


SAMPLERS = {
    "pndm": diffusers.PNDMScheduler,
    "ddim": diffusers.DDIMScheduler,
    "dpm-solver++": diffusers.DPMSolverMultistepScheduler,
}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def pair(request, tmp_path_factory):
    """Our decoder, and diffusers' U-Net and PNDM scheduler with the same weights."""
    theirs = unet()
    folder = tmp_path_factory.mktemp("decoder")
    ours = saved(folder, theirs, vae(), prediction_type=request.param)
    return ours, theirs, diffusers.PNDMScheduler.from_pretrained(folder / "scheduler")


@torch.no_grad()
@pytest.mark.parametrize("steps", [STEPS, 20])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guided_sampling(pair, inputs, sampler, steps):
    ours, theirs, pndm = pair
    options = {"clip_sample": False} if sampler == "ddim" else {}
    scheduler = SAMPLERS[sampler].from_config(pndm.config, **options)
    scheduler.set_timesteps(steps)
    latents, both = first(inputs["latents"]), torch.from_numpy(np.concatenate([inputs["null"], inputs["context"]]))
    expected = []
    for timestep in scheduler.timesteps:
        without, within = theirs(torch.cat([latents] * 2), timestep, both).sample.chunk(2)
        latents = scheduler.step(without + 3.0 * (within - without), timestep, latents).prev_sample
        expected.append(latents)
    output = ours.sample(
        inputs["context"], inputs["null"], latents=inputs["latents"], sampler=sampler, steps=steps,
        guidance_scale=3.0, return_trajectory=True,
    )  # fmt: skip
    assert len(output.trajectory) == len(expected)
    for step, latents in zip(output.trajectory, expected, strict=True):
        assert_within(step, latents)


@torch.no_grad()
def test_diffusers_loads_a_saved_folder(pair, inputs, tmp_path):
    ours, theirs, _ = pair
    save_visual_decoder(ours, tmp_path / "out")
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    arguments = first(inputs["latents"]), torch.tensor(500), torch.from_numpy(inputs["context"])
    torch.testing.assert_close(again(*arguments).sample, theirs(*arguments).sample, rtol=0, atol=0)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    vaes = (diffusers.AutoencoderKL.from_pretrained(tmp_path / "out" / "vae"), vae())
    torch.testing.assert_close(*(v.encode(images).latent_dist.mean for v in vaes), rtol=0, atol=0)
    scheduler = diffusers.PNDMScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    for name, value in SCHEDULER.items():
        assert scheduler.config[name] == value


def test_bin_files_and_old_attention_names_are_read(tmp_path):
    torch_vae = vae()
    ours = saved(tmp_path, unet(), torch_vae, safetensors=False)
    path = tmp_path / "vae" / "diffusion_pytorch_model.bin"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = torch.load(path, weights_only=True)
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in state.items()}
    torch.save(state, path)
    again = load_visual_decoder(tmp_path)
    for name in ("query", "key", "value", "out"):
        kernels = (d.params["vae"]["encoder"]["mid_block"]["attentions_0"][name]["kernel"] for d in (ours, again))
        np.testing.assert_array_equal(*kernels)


def test_diffusers_builds_the_same_unet_from_our_config():
    config = UNetConfig(cross_attention_dim=5120)
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel.from_config(json.loads(json.dumps(config.to_diffusers())))
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert {row.torch: row.torch_shape for row in unet_table(config)} == shapes
