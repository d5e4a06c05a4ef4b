"""Two-dimensional convolution, channels last. The kernel `[height, width, in, out]` carries axis names."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from emu_jax.layers.linear import lecun_normal
from emu_jax.sharding import axes

Padding = tuple[tuple[int, int], tuple[int, int]]


def matrix_init(init: Initializer) -> Initializer:
    """Return `init` applied to a matrix `[product of all dimensions except the last, last]`, with the same fan-in.

    XLA for CPUs compiles random numbers in four dimensions seven times slower than in two: a minute for a U-Net.
    """

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
        return init(key, (math.prod(shape[:-1]), shape[-1]), dtype).reshape(shape)

    return initialize


class Conv(nn.Module):
    """Convolve `[B, height, width, C]`, with bias. The default, 3 x 3 with padding 1, does not change the size.

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
            matrix_init(self.kernel_init), (None, None, axes.CONV_IN, axes.CONV_OUT)
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
