"""Norms: statistics and scale in float32, the result in the compute dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from emu_jax.layers.materialize import materialize_gradient
from emu_jax.sharding import axes


class RMSNorm(nn.Module):
    """Return `x / sqrt(mean(x^2) + eps) * scale` over the last dimension, the norm of LLaMA and T5."""

    eps: float = 1e-6
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.ones, (axes.NORM,))
        scale = self.param("scale", init, (x.shape[-1],), self.param_dtype)
        x = jnp.asarray(x, jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return materialize_gradient(jnp.asarray(x * scale, self.dtype))


class LayerNorm(nn.Module):
    """Return `(x - mean) / sqrt(var + eps) * scale + bias` over the last dimension."""

    eps: float = 1e-6
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = nn.with_logical_partitioning(nn.initializers.ones, (axes.NORM,))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axes.NORM,))
        scale = self.param("scale", ones, (x.shape[-1],), self.param_dtype)
        bias = self.param("bias", zeros, (x.shape[-1],), self.param_dtype)
        x = jnp.asarray(x, jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return materialize_gradient(jnp.asarray(x * scale + bias, self.dtype))
