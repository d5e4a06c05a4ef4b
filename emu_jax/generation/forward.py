"""Forward passes without a cache, compiled per shape: images to embeddings, complete sequences to all outputs."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.errors import UserError
from emu_jax.generation.buckets import power_of_two
from emu_jax.models.emu import Emu
from emu_jax.models.outputs import EmuOutput

_IMAGE_BATCH = 64


@functools.partial(jax.jit, static_argnames="model")
def embed_images(params: Any, images: jax.Array, *, model: Emu) -> jax.Array:
    """Return the `visual_embeddings` `[n, Q, D]` of images `[n, S, S, 3]`."""
    return model.apply({"params": params}, images, method=Emu.embed_images)


def embed_in_batches(params: Any, images: Sequence[np.ndarray], *, model: Emu) -> jax.Array:
    """Return `embed_images` of any number of images; batches and the result are padded to powers of two."""
    found = []
    for first in range(0, len(images), _IMAGE_BATCH):
        batch = images[first : first + _IMAGE_BATCH]
        padding = [np.zeros_like(batch[0])] * (power_of_two(len(batch)) - len(batch))
        found.append(embed_images(params, np.stack([*batch, *padding]), model=model))
    embeddings = found[0] if len(found) == 1 else jnp.concatenate(found)
    missing = power_of_two(len(embeddings)) - len(embeddings)
    return jnp.pad(embeddings, ((0, missing), (0, 0), (0, 0))) if missing else embeddings


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


def check_image_tokens(tokens: jax.Array, images: jax.Array, *, model: Emu) -> None:
    """Raise UserError if a row of tokens `[B, L]` has more `<image>` tokens than its images `[B, I, ...]` provide."""
    limit = images.shape[1] * model.config.causal_former.num_image_tokens
    most = int(jnp.max(jnp.sum(tokens == model.image_token_id, axis=1)))
    if most > limit:
        raise UserError(f"A row has {most} <image> tokens, but {images.shape[1]} images fill only {limit}.")
