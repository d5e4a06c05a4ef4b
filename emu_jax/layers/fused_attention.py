"""Attention in one Pallas kernel on TPUs (splash attention). The [T, S] logits are never written to HBM."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from emu_jax.layers.saved import CONTEXT
from emu_jax.sharding import axes
from emu_jax.sharding.specs import activation_spec
from emu_jax.typing import Array, Float, Int, typechecked

LANES = 128  # the kernel requires lengths that are multiples of this
# Block of queries and keys: fills the matrix unit without spilling (JAX's own tuning for heads of 128).
BLOCK = 512


@typechecked
def fused_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    *,
    scale: float,
    segment_ids: Int[Array, "B T"] | None,
    causal: bool,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Return self-attention within each segment. Each device computes its own rows and heads.

    Args:
      query: sharded over the mesh by rows and heads, like `key` and `value`.
      scale: factor of the logits.
      segment_ids: positions attend to positions with the same id; None: to all positions of the row.
      causal: positions attend only to themselves and earlier positions.
      interpret: run the kernel step by step instead of compiling it, for tests on a CPU.
    """
    length = query.shape[1]
    padding = -length % LANES
    if segment_ids is None and padding:
        segment_ids = jnp.ones(query.shape[:2], jnp.int32)
    if padding:  # segment 0: padding attends only to padding
        pad = lambda x: jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        query, key, value, segment_ids = pad(query), pad(key), pad(value), pad(segment_ids)
    head_axes = (axes.ACT_BATCH, axes.ACT_HEADS, axes.ACT_LENGTH, axes.ACT_KV)
    query, key, value = ((x.swapaxes(1, 2)) for x in (query * jnp.asarray(scale, query.dtype), key, value))
    heads = activation_spec(head_axes, key.shape)
    rows = activation_spec((axes.ACT_BATCH, axes.ACT_LENGTH), query.shape[::2])
    attend = functools.partial(_attend_on_device, causal=causal, interpret=interpret)
    arrays, specs = [query, key, value], [heads, heads, heads]
    if segment_ids is not None:
        arrays.append(segment_ids)
        specs.append(rows)
    if not jax.sharding.get_abstract_mesh().empty:
        attend = jax.shard_map(attend, in_specs=tuple(specs), out_specs=heads, check_vma=False)
    return attend(*arrays).swapaxes(1, 2)[:, :length]


def _attend_on_device(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    causal: bool,
    interpret: bool,
) -> jax.Array:
    """Return attention of `[B, N, T, H]` arrays that are local to one device."""
    heads, length = query.shape[1:3]
    block = next(size for size in range(min(BLOCK, length), 0, -LANES) if length % size == 0)
    mask = splash_mask.CausalMask((length, length)) if causal else splash_mask.FullMask((length, length))
    # One backward kernel for all three gradients: it computes the logits once, two kernels would compute them twice.
    blocks = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        use_fused_bwd_kernel=True,
    )
    kernel = splash.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=CONTEXT,
        interpret=interpret,
    )
    if segment_ids is None:
        return jax.vmap(kernel)(query, key, value)
    return jax.vmap(kernel)(query, key, value, splash.SegmentIds(segment_ids, segment_ids))
