"""Attention in plain JAX: all queries at once, or in chunks of queries."""

import jax
import jax.numpy as jnp

from emu_jax.typing import Array, Bool, Float, typechecked

_MASKED = -1e30


@typechecked
def dot_product_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    scale: float,
    mask: Bool[Array, "#B T S"] | None = None,
    bias: Float[Array, "#B N T S"] | None = None,
) -> Float[Array, "B T N H"]:
    """Return `softmax(scale * q k + bias) v`, with logits and softmax in float32. N/K query heads share a key head."""
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    # Heads before positions, as in a KV cache: XLA for CPUs then transposes none of the large operands of the matmuls.
    query = query.reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    grouped = query.shape[:-1]
    query = query.reshape(batch, kv_heads, -1, head_dim)
    logits = scale * jnp.einsum("BKQH,BKSH->BKQS", query, key, preferred_element_type=jnp.float32)
    logits = logits.reshape(*grouped, -1)
    if bias is not None:
        logits += bias.reshape(bias.shape[0], kv_heads, heads // kv_heads, *bias.shape[2:])
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, _MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype).reshape(batch, kv_heads, -1, key.shape[2])
    out = jnp.einsum("BKQS,BKSH->BKQH", weights, value).reshape(*grouped, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


def chunk_size(queries: int, keys: int) -> int | None:
    """Return the number of queries per chunk of `chunked_attention`.

    None if there are few logits, or if no chunk size divides `queries`: use `dot_product_attention` instead.
    """
    if queries * keys < 2**16:
        return None
    return next((size for size in (256, 128, 64) if queries % size == 0 and (size < 256 or keys <= 512)), None)


@typechecked
def chunked_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    scale: float,
    chunk: int,
) -> Float[Array, "B T N H"]:
    """Return `softmax(scale * q k) v`, for `chunk` queries at a time in both passes; `chunk` divides T.

    Memory grows linearly with the sequence length. On a CPU this is also several times faster for the 1024 latent
    pixels of an image, whose logits do not fit into the CPU's cache.
    """
    batch, length, heads, width = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    key, value = (array.transpose(0, 2, 1, 3) for array in (key, value))  # once, not in every chunk

    @jax.checkpoint
    def attend(queries: jax.Array) -> jax.Array:
        logits = scale * jnp.einsum("BKTH,BKSH->BKTS", queries, key, preferred_element_type=jnp.float32)
        weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
        summed = jnp.einsum("BKTS,BKSH->BKTH", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        # Normalize the outputs, not the weights: there are fewer of them.
        return (summed / jnp.sum(weights, axis=-1, keepdims=True)).astype(value.dtype)

    count = length // chunk
    chunks = query.reshape(batch, count, chunk, kv_heads, group, width).transpose(1, 0, 3, 4, 2, 5)
    out = jax.lax.map(attend, chunks.reshape(count, batch, kv_heads, group * chunk, width))
    return out.reshape(chunks.shape).transpose(1, 0, 4, 2, 3, 5).reshape(batch, length, heads, width)
