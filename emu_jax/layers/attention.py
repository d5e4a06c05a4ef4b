"""Multi-head attention: the arithmetic, and the module around it that LLaMA, T5 and the U-Net share."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax.ad_checkpoint import checkpoint_name

from emu_jax.layers.fused_attention import LANES, fused_attention, on_tpu
from emu_jax.layers.linear import DenseGeneral, LoraConfig, lecun_normal
from emu_jax.layers.masks import PackedCausal
from emu_jax.layers.materialize import materialize, materialize_gradient
from emu_jax.layers.positions import RotaryTables, apply_rotary
from emu_jax.layers.saved import ATTENTION_OUT, CONTEXT, QKV
from emu_jax.sharding import axes
from emu_jax.sharding.specs import logical_constraint
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
    """`softmax(scale * q k + bias) v`, logits and softmax in float32; N/K query heads share a key head."""
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    query = query.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    part = _queries_at_once(length, key.shape[1])
    if mask is None and bias is None and part is not None:
        return _by_queries(query, key, value, scale=scale, part=part).reshape(batch, length, heads, head_dim)
    # Heads before places, as a cache holds them: XLA on CPUs then turns none of the large operands of a product.
    query, key, value = query.transpose(0, 2, 3, 1, 4), key.swapaxes(1, 2), value.swapaxes(1, 2)
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


def _queries_at_once(length: int, keys: int) -> int | None:
    """How many queries `_by_queries` takes; None where the logits are few, or the length does not divide."""
    if length * keys < 2**16:
        return None
    return next((size for size in (256, 128, 64) if length % size == 0 and (size < 256 or keys <= 512)), None)


def _fills_the_kernel(query: jax.Array, key: jax.Array) -> bool:
    """Whether the fused kernel is worth its call: a picture's many places, and heads that its lanes hold."""
    return query.shape[1] == key.shape[1] >= 1024 and query.shape[-1] <= LANES


def _by_queries(query: jax.Array, key: jax.Array, value: jax.Array, *, scale: float, part: int) -> jax.Array:
    """The same, `part` queries at a time, forwards and backwards: memory grows with the length, not with its square.

    On a CPU it is also some times faster for the 1024 places of a picture, whose logits no cache holds.
    """
    batch, length, kv_heads, group, width = query.shape
    key, value = (array.transpose(0, 2, 1, 3) for array in (key, value))  # once, not in every part

    @jax.checkpoint
    def attend(some: jax.Array) -> jax.Array:
        logits = scale * jnp.einsum("BKTH,BKSH->BKTS", some, key, preferred_element_type=jnp.float32)
        weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
        summed = jnp.einsum("BKTS,BKSH->BKTH", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        # Divided here, where there are fewest numbers.
        return (summed / jnp.sum(weights, axis=-1, keepdims=True)).astype(value.dtype)

    count = length // part
    parts = query.reshape(batch, count, part, kv_heads, group, width).transpose(1, 0, 3, 4, 2, 5)
    out = jax.lax.map(attend, parts.reshape(count, batch, kv_heads, group * part, width))
    return out.reshape(parts.shape).transpose(1, 0, 4, 2, 3, 5)


@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer `[B, K, S, H]`, and the slot `index` (int32 scalar) where the next ones go.

    Each head's slots lie side by side: a step's products read them as they lie.
    """

    key: jax.Array
    value: jax.Array
    index: jax.Array

    def append(self, key: jax.Array, value: jax.Array) -> "LayerCache":
        """The cache with `key` and `value` `[B, T, K, H]` written at `index`, which stays: the stack moves it on."""

        def write(slots: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(
                slots, new.swapaxes(1, 2).astype(slots.dtype), self.index, axis=2
            )

        return LayerCache(key=write(self.key, key), value=write(self.value, value), index=self.index)


jax.tree_util.register_dataclass(LayerCache, data_fields=["key", "value", "index"], meta_fields=[])


class Attention(nn.Module):
    """Projections, attention and output projection; self-attention, or cross-attention to `context`."""

    num_heads: int
    head_dim: int
    num_kv_heads: int | None = None
    scale: float | None = None  # None: 1 / sqrt(head_dim); T5 does not scale, 1.0
    qkv_bias: bool = False
    out_bias: bool = False
    lora: LoraConfig | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Float[Array, "B S E"] | None = None,
        *,
        mask: Bool[Array, "#B T S"] | PackedCausal | None = None,
        bias: Float[Array, "#B N T S"] | None = None,
        rotary: RotaryTables | None = None,
        cache: LayerCache | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """Attends from `x`; with a `cache`, its keys and values (this call's included) are what `x` attends to."""
        context = x if context is None else context
        kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype, "lora": self.lora}

        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        # Logits of variance one at the start, whatever the scale: T5 puts its 1/sqrt(head_dim) into the query kernel.
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
        if isinstance(mask, PackedCausal):
            out = fused_attention(query, key, value, scale=scale, segment_ids=mask.segment_ids, causal=True)
        elif mask is None and bias is None and on_tpu() and _fills_the_kernel(query, key):
            out = fused_attention(query, key, value, scale=scale, segment_ids=None, causal=False)
        else:
            out = dot_product_attention(query, key, value, scale=scale, mask=mask, bias=bias)
            out = checkpoint_name(out, CONTEXT)
        project_out = DenseGeneral(
            (x.shape[-1],), (axes.HEADS, axes.KV), (axes.EMBED,), use_bias=self.out_bias, name="out", **dtypes
        )
        out = project_out(materialize_gradient(out), deterministic=deterministic)
        out = logical_constraint(out, (axes.ACT_BATCH, axes.ACT_LENGTH, axes.ACT_EMBED))
        return materialize(checkpoint_name(out, ATTENTION_OUT)), cache
