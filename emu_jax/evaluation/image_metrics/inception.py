"""Inception v3 as FID uses it (the TensorFlow network of 2015-12-05), from pixels to 2048 pooled features.

It differs from torchvision's network: average pools do not count padding, and the last block pools by maximum.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu_jax.typing import Array, Float

FEATURES = 2048
SIDE = 299

_EPS = 1e-3
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution without bias, batch normalization and ReLU; padded to keep the size unless `stride` is 2."""

    name: str
    features: int
    kernel: Size = (1, 1)
    stride: int = 1
    padded: bool = True

    @property
    def padding(self) -> tuple[Size, Size]:
        """Pixels added at (top, bottom) and (left, right)."""
        height, width = (side // 2 if self.padded else 0 for side in self.kernel)
        return ((height, height), (width, width))


Step = Layer | tuple[Layer, ...]  # several layers run side by side and are concatenated


@dataclasses.dataclass(frozen=True)
class Block:
    """Branches side by side, concatenated; then a pooling branch.

    Attributes:
      pool: "average" or "maximum" (3 x 3, stride 1, then `pool_layer`), or "stride" (maximum, stride 2, no layer).
    """

    name: str
    branches: tuple[tuple[Step, ...], ...]
    pool: str
    pool_layer: Layer | None = None


def _strided(name: str, features: int) -> Layer:
    return Layer(name, features, (3, 3), stride=2, padded=False)


def _block_a(name: str, pooled: int) -> Block:
    return Block(
        name,
        (
            (Layer("branch1x1", 64),),
            (Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))),
            (Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3))),
        ),
        "average",
        Layer("branch_pool", pooled),
    )


def _block_b(name: str) -> Block:
    return Block(
        name,
        (
            (_strided("branch3x3", 384),),
            (Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), _strided("branch3x3dbl_3", 96)),
        ),
        "stride",
    )


def _block_c(name: str, width: int) -> Block:
    row, column = (1, 7), (7, 1)
    return Block(
        name,
        (
            (Layer("branch1x1", 192),),
            (Layer("branch7x7_1", width), Layer("branch7x7_2", width, row), Layer("branch7x7_3", 192, column)),
            (
                Layer("branch7x7dbl_1", width),
                Layer("branch7x7dbl_2", width, column),
                Layer("branch7x7dbl_3", width, row),
                Layer("branch7x7dbl_4", width, column),
                Layer("branch7x7dbl_5", 192, row),
            ),
        ),
        "average",
        Layer("branch_pool", 192),
    )


def _block_d(name: str) -> Block:
    return Block(
        name,
        (
            (Layer("branch3x3_1", 192), _strided("branch3x3_2", 320)),
            (
                Layer("branch7x7x3_1", 192),
                Layer("branch7x7x3_2", 192, (1, 7)),
                Layer("branch7x7x3_3", 192, (7, 1)),
                _strided("branch7x7x3_4", 192),
            ),
        ),
        "stride",
    )


def _block_e(name: str, pool: str) -> Block:
    return Block(
        name,
        (
            (Layer("branch1x1", 320),),
            (Layer("branch3x3_1", 384), (Layer("branch3x3_2a", 384, (1, 3)), Layer("branch3x3_2b", 384, (3, 1)))),
            (
                Layer("branch3x3dbl_1", 448),
                Layer("branch3x3dbl_2", 384, (3, 3)),
                (Layer("branch3x3dbl_3a", 384, (1, 3)), Layer("branch3x3dbl_3b", 384, (3, 1))),
            ),
        ),
        pool,
        Layer("branch_pool", 192),
    )


STEM = (
    _strided("Conv2d_1a_3x3", 32),
    Layer("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    Layer("Conv2d_2b_3x3", 64, (3, 3)),
    "pool",
    Layer("Conv2d_3b_1x1", 80),
    Layer("Conv2d_4a_3x3", 192, (3, 3), padded=False),
    "pool",
)
BLOCKS = (
    _block_a("Mixed_5b", 32),
    _block_a("Mixed_5c", 64),
    _block_a("Mixed_5d", 64),
    _block_b("Mixed_6a"),
    _block_c("Mixed_6b", 128),
    _block_c("Mixed_6c", 160),
    _block_c("Mixed_6d", 160),
    _block_c("Mixed_6e", 192),
    _block_d("Mixed_7a"),
    _block_e("Mixed_7b", "average"),
    _block_e("Mixed_7c", "maximum"),
)


class ConvNorm(nn.Module):
    """The module of a `Layer`, in inference."""

    layer: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer, width = self.layer, (self.layer.features,)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (*layer.kernel, x.shape[-1], layer.features))
        scale, bias = self.param("scale", ones, width), self.param("bias", zeros, width)
        mean, variance = self.param("mean", zeros, width), self.param("variance", ones, width)
        strides = (layer.stride, layer.stride)
        y = jax.lax.conv_general_dilated(
            x, kernel, strides, layer.padding, dimension_numbers=_DIMENSIONS, precision=jax.lax.Precision.HIGHEST
        )
        return nn.relu((y - mean) * (scale * jax.lax.rsqrt(variance + _EPS)) + bias)


class InceptionBlock(nn.Module):
    """The module of a `Block`."""

    block: Block

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        outputs = []
        for branch in self.block.branches:
            y = x
            for step in branch:
                layers = step if isinstance(step, tuple) else (step,)
                y = jnp.concatenate([ConvNorm(layer, name=layer.name)(y) for layer in layers], axis=-1)
            outputs.append(y)
        pooled = _pool(x, self.block.pool)
        if self.block.pool_layer is not None:
            pooled = ConvNorm(self.block.pool_layer, name=self.block.pool_layer.name)(pooled)
        return jnp.concatenate([*outputs, pooled], axis=-1)


class Inception(nn.Module):
    """Float pixels 0..255 of 299 x 299 to pooled features."""

    @nn.compact
    def __call__(self, pixels: Float[Array, "n H W C"]) -> Float[Array, "n D"]:
        x = (pixels - 128) / 128
        for step in STEM:
            x = _pool(x, "stride") if isinstance(step, str) else ConvNorm(step, name=step.name)(x)
        for block in BLOCKS:
            x = InceptionBlock(block, name=block.name)(x)
        return jnp.mean(x, axis=(1, 2))


def _pool(x: jax.Array, kind: str) -> jax.Array:
    if kind == "stride":
        return nn.max_pool(x, (3, 3), strides=(2, 2))
    same = ((1, 1), (1, 1))
    if kind == "maximum":
        return nn.max_pool(x, (3, 3), strides=(1, 1), padding=same)
    return nn.avg_pool(x, (3, 3), strides=(1, 1), padding=same, count_include_pad=False)
