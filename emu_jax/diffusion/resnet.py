"""Convolutional blocks of the U-Net and the autoencoder: residual block, downsampling, upsampling."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from emu_jax.layers.conv import Conv, Padding
from emu_jax.layers.group_norm import GroupNorm
from emu_jax.layers.linear import DenseGeneral, lecun_normal
from emu_jax.sharding import axes
from emu_jax.sharding.specs import logical_constraint
from emu_jax.typing import Array, Float, typechecked

IMAGE_AXES = (axes.ACT_BATCH, axes.ACT_HEIGHT, axes.ACT_WIDTH, axes.ACT_CHANNELS)


class ResnetBlock(nn.Module):
    """`x + conv2(silu(norm2(conv1(silu(norm1(x))) + time)))`, with a 1 x 1 shortcut if the channels change."""

    features: int
    groups: int
    eps: float
    last_init: Initializer = lecun_normal  # of the second convolution
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(
        self, x: Float[Array, "B height width C"], time_embedding: Float[Array, "B D"] | None = None
    ) -> Float[Array, "B height width M"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        hidden = nn.silu(GroupNorm(self.groups, self.eps, name="norm1", **dtypes)(x))
        hidden = Conv(self.features, name="conv1", **dtypes)(hidden)
        if time_embedding is not None:
            project = DenseGeneral(
                (self.features,), (axes.TIME_EMBED,), (axes.CONV_OUT,), use_bias=True, name="time_projection", **dtypes
            )
            hidden += project(nn.silu(time_embedding))[:, None, None, :]
        hidden = nn.silu(GroupNorm(self.groups, self.eps, name="norm2", **dtypes)(hidden))
        hidden = Conv(self.features, kernel_init=self.last_init, name="conv2", **dtypes)(hidden)
        if x.shape[-1] != self.features:
            x = pointwise(self.features, name="shortcut", **dtypes)(x)
        return logical_constraint(x + hidden, IMAGE_AXES)


def pointwise(features: int, *, name: str | None, **dtypes: Any) -> DenseGeneral:
    """Return a 1 x 1 convolution: the same linear map at every pixel."""
    return DenseGeneral((features,), (axes.CONV_IN,), (axes.CONV_OUT,), use_bias=True, name=name, **dtypes)


class Downsample(nn.Module):
    """Halves height and width by a convolution with stride 2. With the default padding, an odd size is rounded up."""

    features: int
    padding: Padding = ((1, 1), (1, 1))
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, "B height width C"]) -> Float[Array, "B half_height half_width M"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return Conv(self.features, stride=2, padding=self.padding, name="conv", **dtypes)(x)


class Upsample(nn.Module):
    """Doubles height and width by repeating each pixel, followed by a convolution.

    A `size` of one less than the double leaves out the last row or column, as diffusers' nearest interpolation does.
    """

    features: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(
        self, x: Float[Array, "B height width C"], size: tuple[int, int] | None = None
    ) -> Float[Array, "B new_height new_width M"]:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        if size is not None:
            x = x[:, : size[0], : size[1]]
        x = Conv(self.features, name="conv", dtype=self.dtype, param_dtype=self.param_dtype)(x)
        return logical_constraint(x, IMAGE_AXES)
