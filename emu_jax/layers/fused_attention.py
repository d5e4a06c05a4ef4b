"""Attention in one Pallas kernel on TPUs ("splash attention"): no [T, S] matrix ever leaves the vector memory."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from emu_jax.layers.saved import CONTEXT
from emu_jax.sharding import axes
from emu_jax.sharding.specs import activation_spec
from emu_jax.typing import Array, Float, Int, typechecked

LANES = 128  # the kernel wants lengths that are multiples of this
# Queries and keys at a time: what fills the matrix unit without spilling (jax's own tuning for heads of 128).
BLOCK = 512


def on_tpu() -> bool:
    """Whether the mesh in use is of TPUs, be they there or only compiled for; without one, whether jax runs on them."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() == "tpu" if device is None else device.device_kind.startswith("TPU")


@typechecked
def fused_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    *,
    scale: float,
    segment_ids: Int[Array, "B T"] | None,
    causal: bool,
) -> Float[Array, "B T N H"]:
    """`dot_product_attention` of places on those of the same segment, each chip on its own rows and heads.

    Args:
      query: as `key` and `value`, cut over the mesh by rows and heads.
      scale: of the logits.
      segment_ids: which places see one another; None: all of a row do.
      causal: whether a place sees only what comes before it, and itself.

    Anywhere but on a TPU the kernel's arithmetic is run step by step, slowly: for tests.
    """
    length = query.shape[1]
    padding = -length % LANES
    if segment_ids is None and padding:
        segment_ids = jnp.ones(query.shape[:2], jnp.int32)
    if padding:  # segment 0 sees itself alone, and nobody reads it
        pad = lambda x: jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        query, key, value, segment_ids = pad(query), pad(key), pad(value), pad(segment_ids)
    head_axes = (axes.ACT_BATCH, axes.ACT_HEADS, axes.ACT_LENGTH, axes.ACT_KV)
    query, key, value = ((x.swapaxes(1, 2)) for x in (query * jnp.asarray(scale, query.dtype), key, value))
    heads = activation_spec(head_axes, key.shape)
    rows = activation_spec((axes.ACT_BATCH, axes.ACT_LENGTH), query.shape[::2])
    attend = functools.partial(_on_one_chip, causal=causal, interpret=not on_tpu())
    arrays, specs = [query, key, value], [heads, heads, heads]
    if segment_ids is not None:
        arrays.append(segment_ids)
        specs.append(rows)
    if not jax.sharding.get_abstract_mesh().empty:
        attend = jax.shard_map(attend, in_specs=tuple(specs), out_specs=heads, check_vma=False)
    return attend(*arrays).swapaxes(1, 2)[:, :length]


def _on_one_chip(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    causal: bool,
    interpret: bool,
) -> jax.Array:
    heads, length = query.shape[1:3]
    block = next(size for size in range(min(BLOCK, length), 0, -LANES) if length % size == 0)
    one = splash_mask.CausalMask((length, length)) if causal else splash_mask.FullMask((length, length))
    # One backward kernel for all three gradients: it makes the logits once where two would make them twice.
    blocks = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        use_fused_bwd_kernel=True,
    )
    kernel = splash.make_splash_mha(
        splash_mask.MultiHeadMask([one] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=CONTEXT,
        interpret=interpret,
    )
    if segment_ids is None:
        return jax.vmap(kernel)(query, key, value)
    return jax.vmap(kernel)(query, key, value, splash.SegmentIds(segment_ids, segment_ids))
