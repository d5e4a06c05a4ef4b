"""A picture cut into patches, so that a patch convolution is one matrix product."""

import jax

from emu_jax.typing import Array, Float


def patches(images: Float[Array, "n H W C"], size: int) -> jax.Array:
    """`[n, H, W, C]` to `[n, patches, size * size * C]`, row by row; within a patch rows, columns, channels."""
    count, height, width, channels = images.shape
    x = images.reshape(count, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(count, -1, size * size * channels)
