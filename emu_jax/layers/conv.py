"""Two-dimensional convolution, channels last, whose kernel `[height, width, in, out]` carries axis names."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from emu_jax.layers.linear import lecun_normal
from emu_jax.sharding import axes

Padding = tuple[tuple[int, int], tuple[int, int]]


def flat_draw(init: Initializer) -> Initializer:
    """`init` drawn as a matrix `[all but the last, last]`, whose fan-in is the same.

    XLA for CPUs takes seven times as long to compile a draw of four dimensions as one of two: a minute for a U-Net.
    """

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
        return init(key, (math.prod(shape[:-1]), shape[-1]), dtype).reshape(shape)

    return draw


class Conv(nn.Module):
    """Convolution with bias of `[B, height, width, C]`; 3 x 3 with padding 1 keeps the size.

    `padding` is ((top, bottom), (left, right)).
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: Padding = ((1, 1), (1, 1))
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = lecun_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel_init = nn.with_logical_partitioning(
            flat_draw(self.kernel_init), (None, None, axes.CONV_IN, axes.CONV_OUT)
        )
        kernel = self.param("kernel", kernel_init, shape, self.param_dtype)
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, (axes.CONV_OUT,))
        bias = self.param("bias", bias_init, (self.features,), self.param_dtype)
        y = jax.lax.conv_general_dilated(
            jnp.asarray(x, self.dtype),
            jnp.asarray(kernel, self.dtype),
            window_strides=(self.stride, self.stride),
            padding=self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + jnp.asarray(bias, self.dtype)
