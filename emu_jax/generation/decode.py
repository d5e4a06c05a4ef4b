"""The two moves of every generation: `prefill` reads the prompts, `extend_step` reads one place more."""

from typing import Any

import jax
import jax.numpy as jnp

from emu_jax.generation.prompt import PromptBatch
from emu_jax.models.emu import Emu
from emu_jax.models.llama import empty_cache
from emu_jax.models.outputs import KVCache


def prefill(model: Emu, params: Any, prompts: PromptBatch, *, room: int) -> tuple[jax.Array, KVCache]:
    """Reads the prompts but for their last place into a cache with `room` slots more than that.

    The last place is left to the first `extend_step`, so that a loop has one kind of step and is compiled once.

    Returns:
      embedding: the decoder's input at the last place, `[B, D]`.
      cache: to go on from.
    """
    config = model.config
    batch, length = prompts.tokens.shape
    visual = None
    if prompts.visual_embeddings is not None:
        visual = prompts.visual_embeddings[prompts.slots]
    embeddings = model.apply({"params": params}, prompts.tokens, visual, method=Emu.embed)
    cache = empty_cache(config.decoder, batch=batch, slots=length - 1 + room, dtype=config.dtype)
    before = embeddings[:, :-1]
    _, cache = model.apply({"params": params}, before, cache, is_token=prompts.is_token[:, :-1], method=Emu.extend)
    return embeddings[:, -1], cache


def extend_step(model: Emu, params: Any, embedding: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """One place more for each row: its input `[B, D]` to its state `[B, D]`."""
    hidden, cache = model.apply({"params": params}, embedding[:, None], cache, method=Emu.extend)
    return hidden[:, 0], cache


def embed_tokens(model: Emu, params: Any, tokens: jax.Array) -> jax.Array:
    """`[B]` ids to the decoder's inputs `[B, D]`."""
    return model.apply({"params": params}, tokens[:, None], method=Emu.embed)[:, 0]


def next_logits(model: Emu, params: Any, hidden: jax.Array) -> jax.Array:
    """`[B, D]` states to float32 scores of the next token, `[B, V]` with V the true vocabulary."""
    logits = model.apply({"params": params}, hidden, method=Emu.next_logits)
    return logits[:, : model.config.decoder.vocab_size].astype(jnp.float32)


def next_embedding(model: Emu, params: Any, hidden: jax.Array) -> jax.Array:
    """`[B, D]` states to the visual embedding that would come next, `[B, D]`."""
    return model.apply({"params": params}, hidden, method=Emu.next_embedding)
