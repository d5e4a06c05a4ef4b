"""A tiny Emu with random weights, and the reference models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import emu_jax
from emu_jax.checkpoints.model_directory import boxed_shapes
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.diffusion.decoder import VisualDecoder, unet_inputs, vae_inputs
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.diffusion.unet import UNet
from emu_jax.diffusion.vae import VAE
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.models.config import EmuConfig
from emu_jax.models.presets import emu_tiny
from emu_jax.sharding.specs import unbox

LINES = ["a red circle on a blue ground", "what is this? a small green square.", "This is the first image of a dog"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> EmuPipeline:
    """32 x 32 pixels, N = 4, width 128, random weights."""
    tokenizer = train_tokenizer(LINES * 4, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", vocab_size=300)
    config = emu_tiny(vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, max_length=128))
    return EmuPipeline(config, random_params(config), tokenizer=tokenizer)


def random_params(config: EmuConfig) -> dict[str, Any]:
    """Return random parameters for every module; this is faster than to compile the model's own initialization."""
    return random_tree(unbox(boxed_shapes(config)))


def random_tree(shapes: Any) -> Any:
    """Return arrays of these shapes: ones for scales, small random values for the rest."""
    rng = np.random.default_rng(3)

    def sample(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape)
        return jnp.asarray(rng.normal(scale=0.1, size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(sample, shapes)


def tiny_visual_decoder(width: int) -> VisualDecoder:
    """Return a decoder of images of 8 x 8 pixels with random parameters, for embeddings of `width`."""
    unet_config = UNetConfig(
        sample_size=4,
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=width,
        norm_num_groups=8,
    )
    vae_config = VAEConfig(block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8)
    unet, vae = UNet(unet_config), VAE(vae_config)
    shapes = lambda module, *inputs: unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])
    params = {
        "unet": random_tree(shapes(unet, *unet_inputs(unet_config))),
        "vae": random_tree(shapes(vae, *vae_inputs(vae_config))),
    }
    return VisualDecoder(unet, vae, schedule=NoiseSchedule(), params=params)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A reference model, loaded by the public API, with the outputs of the released code for it."""

    emu: EmuPipeline
    expected: dict[str, np.ndarray]
    images: list[np.ndarray]  # normalized, [S, S, 3]

    def prompt(self, index: int) -> list[str | np.ndarray]:
        """Return the reference prompt of this number as parts."""
        N = self.emu.config.causal_former.num_image_tokens
        texts = str(self.expected["prompts"][index]).split("[IMG]" + "<image>" * N + "[/IMG]")
        images = self.images[:1] if index == 0 else self.images[1:]
        parts: list[str | np.ndarray] = [texts[0]]
        for image, text in zip(images, texts[1:], strict=False):
            parts += [image, text]
        return parts


def _reference(shared: Path, name: str) -> Reference:
    folder = shared / "reference" / name
    emu = emu_jax.load(folder, tokenizer=shared / "samples" / "llama_tokenizer.model")
    expected = dict(np.load(folder / "expected.npz"))
    return Reference(emu, expected, [image.transpose(1, 2, 0) for image in expected["images"]])


@pytest.fixture(scope="session")
def pretrained(shared_dir: Path) -> Reference:
    return _reference(shared_dir, "emu_tiny")


@pytest.fixture(scope="session")
def instruct(shared_dir: Path) -> Reference:
    return _reference(shared_dir, "emu_tiny_instruct")
