"""Group normalization (Wu & He 2018), channels last: statistics and scale in float32, the result in `dtype`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from emu_jax.sharding import axes


class GroupNorm(nn.Module):
    """Normalize `[B, ..., C]` over all dimensions except the batch, within each group of adjacent channels."""

    groups: int = 32
    eps: float = 1e-5
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        ones = nn.with_logical_partitioning(nn.initializers.ones, (axes.NORM,))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axes.NORM,))
        scale = self.param("scale", ones, (channels,), self.param_dtype)
        bias = self.param("bias", zeros, (channels,), self.param_dtype)
        x = jnp.asarray(x, jnp.float32)
        x = x - self._group_mean(x)
        x = x * (jax.lax.rsqrt(self._group_mean(jnp.square(x)) + self.eps) * scale) + bias
        return jnp.asarray(x, self.dtype)

    def _group_mean(self, x: jax.Array) -> jax.Array:
        """Return the mean over each group, repeated for its channels: `[B, 1, ..., 1, C]`.

        Pixels are averaged before channels, so the large reduction reads contiguous memory.
        """
        channel_means = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
        groups = channel_means.reshape(x.shape[0], self.groups, -1)
        means = jnp.broadcast_to(jnp.mean(groups, axis=-1, keepdims=True), groups.shape)
        return means.reshape(x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
