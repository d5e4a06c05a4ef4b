"""From a loaded model to an engine that serves it."""

import math
from collections.abc import Mapping
from typing import Any

from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.pixels import SafetyCheck
from emu_jax.serving.config import EngineConfig
from emu_jax.serving.device import TextDevice
from emu_jax.serving.engine import Engine
from emu_jax.serving.image_device import ImageDevice
from emu_jax.serving.metrics import Metrics
from emu_jax.serving.programs import Ids
from emu_jax.serving.weights import split_layers


def suggested_chunk(context: int) -> int:
    """Return the tokens of a prefill step for a context: a power of two, at most 128 and a quarter of the context."""
    return min(128, max(4, 2 ** int(math.log2(max(context // 4, 4)))))


def trained_size(emu: EmuPipeline) -> tuple[int, int]:
    """Return the `(height, width)` in pixels that the visual decoder was trained for."""
    height, width = emu.visual_decoder.latent_size()
    factor = emu.visual_decoder.vae.config.factor
    return height * factor, width * factor


def create_device(emu: EmuPipeline, config: EngineConfig, parameter_sets: Mapping[str, Any]) -> TextDevice:
    """Return the decoder's device with a parameter set for each model name, all of the shapes of `emu.params`."""
    tokenizer = emu.tokenizer
    ids = Ids(
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        boi_id=tokenizer.boi_id,
        eoi_id=tokenizer.eoi_id,
        image_token_id=tokenizer.image_token_id,
        num_image_tokens=emu.config.causal_former.num_image_tokens,
    )
    layers = emu.config.decoder.num_layers
    weights = {name: split_layers(tree, num_layers=layers, mesh=emu.mesh) for name, tree in parameter_sets.items()}
    return TextDevice(emu.model, weights, config, ids, mesh=emu.mesh)


def create_engine(
    emu: EmuPipeline, config: EngineConfig, device: TextDevice, *, safety: SafetyCheck | None = None
) -> Engine:
    """Return the engine, not started. `config.image_sizes` are those that the visual decoder is compiled for."""
    images = {
        (height, width): ImageDevice(
            emu.visual_decoder,
            config,
            height=height,
            width=width,
            num_image_tokens=emu.config.causal_former.num_image_tokens,
        )
        for height, width in config.image_sizes
    }
    empty = emu.build_prompt("", open_image=True)
    return Engine(device, images, Metrics(slots=config.slots), empty_prompt=empty, safety=safety)
