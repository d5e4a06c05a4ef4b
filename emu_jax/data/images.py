"""Pixels from whatever people call an image, and the release's preprocessing of them."""

import io
import os
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from emu_jax.errors import UserError
from emu_jax.pixels import CLIP_MEAN, CLIP_STD
from emu_jax.typing import Float, UInt8, typechecked

# Formats read; PIL knows more (EPS starts another program, for one).
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]
MAX_SIDE = 16_384
MAX_PIXELS = 50_000_000  # 150 MB of pixels; a bomb of a few kB unpacks to gigabytes

ImageLike = bytes | str | os.PathLike | np.ndarray | PIL.Image.Image


class DecodeError(UserError):
    """An image or video that cannot be read; the message is the reason, without the name of the file."""


def decode(image: ImageLike, *, at_least: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of an encoded image (bytes or path), an array or a PIL image, as RGB.

    The camera's rotation (EXIF) is applied, transparency is laid over white, 16-bit grey scaled to 8 bits, CMYK and
    palettes converted, and of an animation the first frame is taken.

    Args:
      at_least: pixels of a side that are enough: a JPEG is then decoded at 1/2, 1/4 or 1/8 of its size, the smallest
        of which both sides have as many. Resized to that, photographs take less than half the time, and are off by 0.2
        to 2.3 of 255 on average from those decoded whole (most at letters on paper): libjpeg leaves out frequencies
        where bicubic resizing weighs neighbours.

    Raises:
      DecodeError: not an image, a truncated one, or one of more than `MAX_SIDE` or `MAX_PIXELS` pixels.
    """
    if isinstance(image, np.ndarray):
        return _checked_array(image)
    return np.asarray(_rgb(image, at_least=at_least))


def resize(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Plain bicubic resize to `size` x `size`, the aspect not kept: what the release does."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(_bicubic(PIL.Image.fromarray(image), size))


def preprocess(image: ImageLike, size: int, *, exact: bool = True) -> UInt8[np.ndarray, "S S 3"]:
    """`decode` and `resize`: pixels as a batch holds them, before `normalize`.

    Args:
      exact: the release's pixels to the bit; False decodes large JPEGs at a reduced scale (see `decode`).
    """
    if isinstance(image, np.ndarray):
        return resize(_checked_array(image), size)
    return np.asarray(_bicubic(_rgb(image, at_least=None if exact else size), size))


@typechecked
def normalize(images: UInt8[np.ndarray, "*batch H W 3"]) -> Float[np.ndarray, "*batch H W 3"]:
    """(pixels / 255 - mean) / std, float32: what the vision encoder takes."""
    mean, std = np.asarray(CLIP_MEAN, np.float32), np.asarray(CLIP_STD, np.float32)
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def encode_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Losslessly encoded, for storing."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def encode_jpeg(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Quality 95 in full colour resolution, for storing."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _rgb(image: bytes | str | os.PathLike | PIL.Image.Image, *, at_least: int | None) -> PIL.Image.Image:
    opened = image if isinstance(image, PIL.Image.Image) else _open(image)
    _check_size(*opened.size)
    try:
        if at_least is not None and opened is not image:
            opened.draft(None, (at_least, at_least))  # only JPEGs know what to do with it
        opened.load()
        return _to_rgb(PIL.ImageOps.exif_transpose(opened))
    except Exception as error:  # PIL raises a dozen kinds of exception on broken files
        raise DecodeError(f"the image cannot be decoded ({_reason(error)})") from None


def _open(image: bytes | str | os.PathLike) -> PIL.Image.Image:
    if isinstance(image, str | os.PathLike):
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise DecodeError(f"{os.fspath(image)} cannot be read ({error.strerror})") from None
    else:
        data = bytes(image)
    if not data:
        raise DecodeError("the image file is empty")
    try:
        return PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.UnidentifiedImageError:
        raise DecodeError("the file is not an image of a known format") from None
    except PIL.Image.DecompressionBombError:
        raise DecodeError(f"the image has more than {MAX_PIXELS} pixels") from None
    except Exception as error:
        raise DecodeError(f"the image cannot be opened ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _bicubic(image: PIL.Image.Image, size: int) -> PIL.Image.Image:
    """One dimension after the other, in the order of Pillow 13, with any Pillow.

    The values are clipped to 0..255 in between, so that the order shows: by up to five levels in a photograph.
    """
    width, height = image.size
    rows_first = height > size and height - size > 2 * (width - size)
    for shape in [(width, size) if rows_first else (size, height), (size, size)]:
        image = image.resize(shape, PIL.Image.Resampling.BICUBIC)
    return image


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits; PIL's own conversion clips at 255 and leaves white
        values = np.asarray(image).astype(np.int64)
        return PIL.Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        return PIL.Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _checked_array(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise DecodeError(f"an image array must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    _check_size(image.shape[1], image.shape[0])
    return image


def _check_size(width: int, height: int) -> None:
    if min(width, height) < 1:
        raise DecodeError("the image has no pixels")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise DecodeError(
            f"the image is {width} x {height}; at most {MAX_SIDE} on a side and {MAX_PIXELS} pixels are read"
        )
