"""Split images into patches, so that a patch convolution is one matmul."""

from emu_jax.typing import Array, Float, typechecked


@typechecked
def patches(images: Float[Array, "n height width C"], size: int) -> Float[Array, "n P values"]:
    """Return the patches row by row, each with its `size * size * C` values ordered by rows, columns, channels."""
    count, height, width, channels = images.shape
    x = images.reshape(count, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(count, -1, size * size * channels)
