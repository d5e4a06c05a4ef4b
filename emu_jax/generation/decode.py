"""The two parts of every generation: `prefill` runs the prompts, a decode step runs one more position per row."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from emu_jax.generation.prompt import PromptBatch
from emu_jax.models.emu import Emu
from emu_jax.models.llama import empty_cache
from emu_jax.models.outputs import KVCache

_MAX_UNSTACKED_LAYERS = 16  # the 14B has 40


def prefill(model: Emu, params: Any, prompts: PromptBatch, *, capacity: int) -> tuple[jax.Array, KVCache]:
    """Run all tokens of the prompts except the last; the cache has `capacity` more slots.

    The last token is the input of the first decode step, so that a loop has only one kind of step.

    Returns:
      embedding: the decoder's input for the last token, `[B, D]`.
      cache: keys and values of the other tokens.
    """
    config = model.config
    batch, length = prompts.tokens.shape
    visual = None
    if prompts.visual_embeddings is not None:
        visual = prompts.visual_embeddings[prompts.slots]
    embeddings = model.apply({"params": params}, prompts.tokens, visual, method=Emu.embed)
    cache = empty_cache(config.decoder, batch=batch, slots=length - 1 + capacity, dtype=config.dtype)
    inputs, is_token = embeddings[:, :-1], prompts.is_token[:, :-1]
    _, cache = model.apply({"params": params}, inputs, cache, is_token=is_token, method=Emu.extend)
    return embeddings[:, -1], cache


Step = Callable[[jax.Array, KVCache], tuple[jax.Array, KVCache]]


def make_step(model: Emu, params: Any, cache: KVCache) -> tuple[Step, KVCache]:
    """Return a decode step for use in a loop, and the cache in the layout that it requires. Call it before the loop.

    A scan over layers copies the weights and the cache of each layer out of their stacks in every step. A model of few
    layers is unstacked once instead, which halves the time of a step on a CPU. A model of many layers stays stacked:
    otherwise its program would be long, and its weights would be in memory twice.

    Returns:
      step: from the input `[B, D]` of one position and a cache to the state `[B, D]` and the new cache.
      cache: the given one; its keys and values may be tuples of one array per layer.
    """
    layers = model.config.decoder.num_layers
    step = functools.partial(model.apply, {"params": params}, method=Emu.extend_step)
    if layers > _MAX_UNSTACKED_LAYERS:
        return step, cache
    unstack: Any = lambda stack: tuple(stack[i] for i in range(layers))
    blocks = [jax.tree.map(lambda stack, i=i: stack[i], params["decoder"]["blocks"]) for i in range(layers)]
    cache = dataclasses.replace(cache, key=unstack(cache.key), value=unstack(cache.value))
    return functools.partial(step, blocks=blocks), cache


def repeat_rows(cache: KVCache, count: int) -> KVCache:
    """Return a stacked cache with each row `count` times."""
    return KVCache(
        key=jnp.repeat(cache.key, count, axis=1),
        value=jnp.repeat(cache.value, count, axis=1),
        valid=jnp.repeat(cache.valid, count, axis=0),
        index=cache.index,
        positions=jnp.repeat(cache.positions, count, axis=0),
    )


def take_rows(cache: KVCache, rows: jax.Array, *, first: int) -> KVCache:
    """Return the cache with the keys and values of `rows` `[B]` from slot `first` on; earlier slots must be equal.

    This is a matmul with ones and zeros, which is exact. XLA's gather would copy the complete cache; this updates it
    in place.
    """
    picks = jax.nn.one_hot(rows, cache.valid.shape[0])

    def take(array: jax.Array) -> jax.Array:
        slots = array.ndim - 2  # of [B, K, S, H], or of a stack of these
        later = jax.lax.slice_in_dim(array, first, None, axis=slots)
        taken = jnp.einsum("bc,...cksh->...bksh", picks.astype(array.dtype), later, precision=jax.lax.Precision.HIGHEST)
        return jax.lax.dynamic_update_slice_in_dim(array, taken.astype(array.dtype), first, axis=slots)

    return dataclasses.replace(cache, key=jax.tree.map(take, cache.key), value=jax.tree.map(take, cache.value))


def embed_tokens(model: Emu, params: Any, tokens: jax.Array) -> jax.Array:
    """Return the decoder's inputs `[B, D]` for token ids `[B]`."""
    return model.apply({"params": params}, tokens[:, None], method=Emu.embed)[:, 0]


def next_logits(model: Emu, params: Any, hidden: jax.Array) -> jax.Array:
    """Return float32 scores of the next token `[B, V]`, V the unpadded vocabulary, for states `[B, D]`."""
    logits = model.apply({"params": params}, hidden, method=Emu.next_logits)
    return logits[:, : model.config.decoder.vocab_size].astype(jnp.float32)


def next_embedding(model: Emu, params: Any, hidden: jax.Array) -> jax.Array:
    """Return the predicted next visual embedding `[B, D]` for states `[B, D]`."""
    return model.apply({"params": params}, hidden, method=Emu.next_embedding)
