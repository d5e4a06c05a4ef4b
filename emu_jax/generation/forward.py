"""Forward passes without a cache, compiled per shape: images to embeddings, complete sequences to all outputs."""

import functools
from typing import Any

import jax

from emu_jax.models.emu import Emu
from emu_jax.models.outputs import EmuOutput


@functools.partial(jax.jit, static_argnames="model")
def embed_images(params: Any, images: jax.Array, *, model: Emu) -> jax.Array:
    """Return the `visual_embeddings` `[n, Q, D]` of images `[n, S, S, 3]`."""
    return model.apply({"params": params}, images, method=Emu.embed_images)


@functools.partial(jax.jit, static_argnames="model")
def forward_pass(
    params: Any,
    tokens: jax.Array,
    images: jax.Array | None,
    positions: jax.Array | None,
    segment_ids: jax.Array,
    *,
    model: Emu,
) -> EmuOutput:
    """Return all outputs of the model, with logits cropped to the unpadded vocabulary."""
    output = model.apply({"params": params}, tokens, images, positions=positions, segment_ids=segment_ids)
    return output.replace(logits=output.logits[..., : model.config.decoder.vocab_size])
