"""The named ways to bring an image to Inception's size; FIDs of different ways are not comparable."""

import enum

import numpy as np
import PIL.Image

from emu_jax.typing import Float, UInt8


class Resize(enum.Enum):
    """As in Parmar et al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation"."""

    CLEAN = "clean"  # antialiased bicubic, channel by channel in float
    LEGACY_TENSORFLOW = "legacy_tensorflow"  # bilinear without antialiasing, as the first FID code


def resize_for_inception(image: UInt8[np.ndarray, "H W 3"], side: int, way: Resize) -> Float[np.ndarray, "S S 3"]:
    """Return float32 pixels 0..255 of `side` x `side`."""
    if way is Resize.CLEAN:
        channels = [PIL.Image.fromarray(image[:, :, c].astype(np.float32)) for c in range(3)]
        resized = [np.asarray(channel.resize((side, side), PIL.Image.Resampling.BICUBIC)) for channel in channels]
        return np.clip(np.stack(resized, axis=-1), 0, 255)
    rows, columns = (_taps(length, side) for length in image.shape[:2])
    pixels = image.astype(np.float32)
    pixels = _interpolate(pixels, *rows, axis=0)
    return _interpolate(pixels, *columns, axis=1)


def _taps(length: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two source pixels and the weight of the second; pixel corners, not centers, are aligned."""
    position = np.arange(side, dtype=np.float32) * np.float32(length / side)
    first = np.floor(position).astype(np.int64)
    return first, np.minimum(first + 1, length - 1), position - first.astype(np.float32)


def _interpolate(x: np.ndarray, first: np.ndarray, second: np.ndarray, weight: np.ndarray, *, axis: int) -> np.ndarray:
    shape = [1, 1, 1]
    shape[axis] = len(weight)
    low, high = np.take(x, first, axis=axis), np.take(x, second, axis=axis)
    return low + (high - low) * weight.reshape(shape)
