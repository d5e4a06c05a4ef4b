"""The two moves of every generation: `prefill` reads the prompts, an `extend_step` reads one place more."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from emu_jax.generation.prompt import PromptBatch
from emu_jax.layers.attention import LayerCache
from emu_jax.layers.masks import cached_causal_mask
from emu_jax.layers.norms import RMSNorm
from emu_jax.layers.positions import rotary_tables
from emu_jax.models.emu import Emu
from emu_jax.models.llama import LlamaBlock, empty_cache
from emu_jax.models.outputs import KVCache
from emu_jax.typing import Array, Bool, Float, Int

_MOST_APART = 16  # layers; the 14B has 40


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


Step = Callable[[jax.Array, KVCache], tuple[jax.Array, KVCache]]


def make_step(model: Emu, params: Any, cache: KVCache) -> tuple[Step, KVCache]:
    """`extend_step` for use in a loop, and the cache as it wants it. To be made outside of the loop.

    A scan over layers copies each layer's weights and cache out of their stacks and back, step by step; where the
    layers are few they are taken apart once instead, which halves the time of a step on a CPU. Many layers stay
    stacked: their program would be long and their weights twice in memory.

    Returns:
      extend_step: one place more for each row, its input `[B, D]` and a cache to its state `[B, D]` and the cache.
      cache: holds what the given one holds; its keys and values may be one array for each layer.
    """
    layers = model.config.decoder.num_layers
    if layers > _MOST_APART:
        return functools.partial(_stacked_step, model, params), cache
    blocks = [jax.tree.map(lambda stack, i=i: stack[i], params["decoder"]["blocks"]) for i in range(layers)]
    apart: Any = lambda stack: tuple(stack[i] for i in range(layers))
    cache = dataclasses.replace(cache, key=apart(cache.key), value=apart(cache.value))
    return functools.partial(unrolled_step, model, params["decoder"]["final_norm"], blocks), cache


def repeat_rows(cache: KVCache, count: int) -> KVCache:
    """A stacked cache with each row `count` times."""
    return KVCache(
        key=jnp.repeat(cache.key, count, axis=1),
        value=jnp.repeat(cache.value, count, axis=1),
        valid=jnp.repeat(cache.valid, count, axis=0),
        index=cache.index,
        positions=jnp.repeat(cache.positions, count, axis=0),
    )


def take_rows(cache: KVCache, rows: jax.Array, *, first: int) -> KVCache:
    """The keys and values of `rows` `[B]` from slot `first` on, where rows that change places agree in those before it.

    By a product with ones and zeros, which is exact: XLA's gather would copy the whole cache, this writes in place.
    """
    picks = jax.nn.one_hot(rows, cache.valid.shape[0])

    def take(array: jax.Array) -> jax.Array:
        slots = array.ndim - 2  # of [B, K, S, H], or of a stack of these
        later = jax.lax.slice_in_dim(array, first, None, axis=slots)
        taken = jnp.einsum("bc,...cksh->...bksh", picks.astype(array.dtype), later, precision=jax.lax.Precision.HIGHEST)
        return jax.lax.dynamic_update_slice_in_dim(array, taken.astype(array.dtype), first, axis=slots)

    return dataclasses.replace(cache, key=jax.tree.map(take, cache.key), value=jax.tree.map(take, cache.value))


def _stacked_step(model: Emu, params: Any, embedding: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
    hidden, cache = model.apply({"params": params}, embedding[:, None], cache, method=Emu.extend)
    return hidden[:, 0], cache


def unrolled_step(
    model: Emu, final_norm: Any, blocks: Sequence[Any], embedding: jax.Array, cache: KVCache
) -> tuple[jax.Array, KVCache]:
    """Do what `Emu.extend` does with one token, the layers one after the other."""
    batch = embedding.shape[0]
    valid = jax.lax.dynamic_update_slice_in_dim(cache.valid, jnp.ones((batch, 1), bool), cache.index, axis=1)
    caches = tuple(LayerCache(key, value, cache.index) for key, value in zip(cache.key, cache.value, strict=True))
    hidden, caches = run_layers(
        model,
        final_norm,
        blocks,
        embedding[:, None],
        caches,
        positions=cache.positions[:, None],
        mask=cached_causal_mask(valid, cache.index, 1),
    )
    per_layer: Any = {name: tuple(getattr(layer, name) for layer in caches) for name in ("key", "value")}
    cache = KVCache(**per_layer, valid=valid, index=cache.index + 1, positions=cache.positions + 1)
    return hidden[:, 0], cache


def run_layers(
    model: Emu,
    final_norm: Any,
    blocks: Sequence[Any],
    x: Float[Array, "B T D"],
    caches: Sequence[LayerCache],
    *,
    positions: Int[Array, "B T"],
    mask: Bool[Array, "#B T S"],
) -> tuple[Float[Array, "B T D"], tuple[LayerCache, ...]]:
    """Return the decoder's states after its final norm, and each layer's cache with this call's keys and values.

    `final_norm` and `blocks` (one tree per layer) are the decoder's parameters.
    """
    config, decoder = model.config, model.config.decoder
    dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
    rotary = rotary_tables(positions, head_dim=decoder.head_dim, theta=decoder.rope_theta)
    block = LlamaBlock(decoder, lora=config.lora, deterministic=True, **dtypes)
    filled = []
    for weights, cache in zip(blocks, caches, strict=True):
        x, cache = block.apply({"params": weights}, x, cache, (rotary, mask))
        filled.append(cache)
    return RMSNorm(eps=decoder.norm_eps, **dtypes).apply({"params": final_norm}, x), tuple(filled)


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
