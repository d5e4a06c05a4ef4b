"""Attention: `attend` chooses the implementation, `Attention` is the module around it for LLaMA, T5 and the U-Net."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax.ad_checkpoint import checkpoint_name

from emu_jax.hardware import on_tpu
from emu_jax.layers.dot_product_attention import chunk_size, chunked_attention, dot_product_attention
from emu_jax.layers.fused_attention import LANES, fused_attention
from emu_jax.layers.linear import DenseGeneral, LoraConfig, lecun_normal
from emu_jax.layers.masks import PackedCausal, packed_causal_mask
from emu_jax.layers.materialize import materialize, materialize_gradient
from emu_jax.layers.positions import RotaryTables, apply_rotary
from emu_jax.layers.saved import ATTENTION_OUT, CONTEXT, QKV
from emu_jax.sharding import axes
from emu_jax.sharding.specs import logical_constraint
from emu_jax.typing import Array, Bool, Float, typechecked

# Unmasked self-attention over more tokens than this uses the fused kernel on TPUs: EVA's 257 tokens and the 1024 latent
# pixels of the U-Net's second level do, the 256 of its third level do not.
FUSED_ABOVE = 256


@typechecked
def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    scale: float,
    mask: Bool[Array, "#B T S"] | PackedCausal | None = None,
    bias: Float[Array, "#B N T S"] | None = None,
) -> Float[Array, "B T N H"]:
    """Return `softmax(scale * q k + bias) v` by the implementation that suits the shapes, the mask and the devices.

    - On TPUs, packed causal rows and long unmasked self-attention: `fused_attention`.
    - Many logits without mask and bias (latent pixels of an image): `chunked_attention`.
    - Otherwise: `dot_product_attention`.

    The result is named CONTEXT for rematerialization.
    """
    segment_ids = mask.segment_ids if isinstance(mask, PackedCausal) else None
    packed = segment_ids is not None
    long_unmasked = mask is None and query.shape[1] == key.shape[1] > FUSED_ABOVE and query.shape[-1] <= LANES
    if on_tpu() and bias is None and (packed or long_unmasked):
        return fused_attention(query, key, value, scale=scale, segment_ids=segment_ids, causal=packed)
    if isinstance(mask, PackedCausal):
        mask = packed_causal_mask(mask.segment_ids)
    chunk = chunk_size(query.shape[1], key.shape[1]) if mask is None and bias is None else None
    if chunk is None:
        out = dot_product_attention(query, key, value, scale=scale, mask=mask, bias=bias)
    else:
        out = chunked_attention(query, key, value, scale=scale, chunk=chunk)
    return checkpoint_name(out, CONTEXT)


@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer `[B, K, S, H]`, and the slot `index` (int32 scalar) of the next ones.

    The slots of each head are contiguous, so that the matmuls of a decode step read them without a transpose.
    """

    key: jax.Array
    value: jax.Array
    index: jax.Array

    def append(self, key: jax.Array, value: jax.Array) -> "LayerCache":
        """Return the cache with `key` and `value` `[B, T, K, H]` written at `index`; the caller advances `index`."""

        def write(slots: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(
                slots, new.swapaxes(1, 2).astype(slots.dtype), self.index, axis=2
            )

        return LayerCache(key=write(self.key, key), value=write(self.value, value), index=self.index)


jax.tree_util.register_dataclass(LayerCache, data_fields=["key", "value", "index"], meta_fields=[])


class Attention(nn.Module):
    """Projections, attention and output projection, for self-attention or cross-attention to `context`."""

    num_heads: int
    head_dim: int
    num_kv_heads: int | None = None
    scale: float | None = None  # of the logits; None: 1 / sqrt(head_dim). T5 uses 1.0
    qkv_bias: bool = False
    out_bias: bool = False
    lora: LoraConfig | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Float[Array, "B S E"] | None = None,
        *,
        mask: Bool[Array, "#B T S2"] | PackedCausal | None = None,
        bias: Float[Array, "#B N T S2"] | None = None,
        rotary: RotaryTables | None = None,
        cache: LayerCache | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """Return the outputs for `x`, and the cache with the keys and values of this call.

        With a `cache`, `x` attends to all keys in it, and S2 is its number of slots. Otherwise S2 is S, or T without
        `context`.
        """
        context = x if context is None else context
        kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype, "lora": self.lora}

        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        # Initial logits have variance one for any scale. T5 initializes its query kernel with the 1/sqrt(head_dim).
        query_init = nn.initializers.variance_scaling(1 / (scale**2 * self.head_dim), "fan_in", "normal")

        def project(name: str, source: jax.Array, heads: int, head_axis: str, init: Initializer) -> jax.Array:
            features, names = (heads, self.head_dim), (head_axis, axes.KV)
            dense = DenseGeneral(
                features, (axes.EMBED,), names, use_bias=self.qkv_bias, kernel_init=init, name=name, **dtypes
            )
            return dense(source, deterministic=deterministic)

        query = project("query", x, self.num_heads, axes.HEADS, query_init)
        key = project("key", context, kv_heads, axes.KV_HEADS, lecun_normal)
        value = project("value", context, kv_heads, axes.KV_HEADS, lecun_normal)
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        query, key, value = (
            checkpoint_name(logical_constraint(a, (axes.ACT_BATCH, axes.ACT_LENGTH, axes.ACT_HEADS, axes.ACT_KV)), QKV)
            for a in (query, key, value)
        )
        if cache is not None:
            cache = cache.append(key, value)
            key, value = (slots.swapaxes(1, 2).astype(self.dtype) for slots in (cache.key, cache.value))
        out = attend(query, key, value, scale=scale, mask=mask, bias=bias)
        project_out = DenseGeneral(
            (x.shape[-1],), (axes.HEADS, axes.KV), (axes.EMBED,), use_bias=self.out_bias, name="out", **dtypes
        )
        out = project_out(materialize_gradient(out), deterministic=deterministic)
        out = logical_constraint(out, (axes.ACT_BATCH, axes.ACT_LENGTH, axes.ACT_EMBED))
        return materialize(checkpoint_name(out, ATTENTION_OUT)), cache
