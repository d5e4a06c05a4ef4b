"""Decode images to RGB pixels, and preprocess them as the release does."""

import io
import os
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL import features

from emu_jax.data.bad_data import DecodeError
from emu_jax.data.limits import DEFAULT_LIMITS, Limits
from emu_jax.data.regular_files import read_regular_file
from emu_jax.errors import UserError
from emu_jax.pixels import CLIP_MEAN, CLIP_STD
from emu_jax.typing import Float, UInt8, typechecked

_READS_AVIF = "avif" in features.modules and features.check_module("avif")
# Accepted formats. PIL has more, but some are unsafe: EPS, for example, starts another program.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *(["AVIF"] if _READS_AVIF else [])]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # metadata that Pillow refuses above some size
_START_OF_SCAN = b"\xff\xda"

ImageLike = bytes | str | os.PathLike | np.ndarray | PIL.Image.Image


def decode(
    image: ImageLike, *, at_least: int | None = None, limits: Limits = DEFAULT_LIMITS
) -> UInt8[np.ndarray, "H W 3"]:
    """Return the RGB pixels of an encoded image (bytes or path), an array or a PIL image.

    EXIF rotation is applied, transparency is composited over white, 16-bit gray is scaled to 8 bits, CMYK and
    palettes are converted, and the first frame of an animation is returned.

    Args:
      at_least: number of pixels per side that suffices. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size: the
        smallest scale at which both sides have at least this many pixels. For photographs, decoding at a reduced scale
        and resizing takes less than half the time of a full decode, and the pixels differ by 0.2 to 2.3 of 255 on
        average (most for scanned text): libjpeg drops frequencies where bicubic resizing averages neighbors.

    Raises:
      DecodeError: not an image, a truncated image, or one that exceeds `limits`.
    """
    if isinstance(image, np.ndarray):
        return _checked_array(image, limits)
    return np.asarray(_rgb(image, at_least=at_least, limits=limits))


def resize(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Resize to `size` x `size` with bicubic interpolation, ignoring the aspect ratio, as the release does."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(_bicubic(PIL.Image.fromarray(image), size))


def resize_and_crop(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Resize the shorter side to `size` and crop the center, as Stable Diffusion trains; bicubic interpolation."""
    height, width = image.shape[:2]
    if height == width:
        return resize(image, size)
    scale = size / min(height, width)
    shape = (max(size, round(width * scale)), max(size, round(height * scale)))
    resized = PIL.Image.fromarray(image).resize(shape, PIL.Image.Resampling.BICUBIC)
    left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def decoder_pixels(image: ImageLike, size: int, *, allow_upscale: bool) -> UInt8[np.ndarray, "S S 3"]:
    """Return the pixels that the visual decoder or the autoencoder trains on, by `resize_and_crop`.

    Raises:
      UserError: a side of the image has fewer than `size` pixels, and `allow_upscale` is False.
    """
    pixels = decode(image)
    if min(pixels.shape[:2]) < size and not allow_upscale:
        raise UserError(
            f"A stored image has {pixels.shape[1]} x {pixels.shape[0]} pixels; training at {size} would enlarge it. "
            f"Prepare the set with prepare-data --image-size={size} --crop, or allow it: --allow-upscale, or "
            "allow_upscale=true in the config."
        )
    return resize_and_crop(pixels, size)


def preprocess(
    image: ImageLike, size: int, *, exact: bool = True, limits: Limits = DEFAULT_LIMITS
) -> UInt8[np.ndarray, "S S 3"]:
    """Apply `decode` and `resize`: return the pixels as stored in a batch, before `normalize`.

    Args:
      exact: True returns exactly the release's pixels; False decodes large JPEGs at a reduced scale (see `decode`).
    """
    if isinstance(image, np.ndarray):
        return resize(_checked_array(image, limits), size)
    return np.asarray(_bicubic(_rgb(image, at_least=None if exact else size, limits=limits), size))


@typechecked
def normalize(images: UInt8[np.ndarray, "*batch H W 3"]) -> Float[np.ndarray, "*batch H W 3"]:
    """Return (pixels / 255 - mean) / std in float32, the input of the vision encoder."""
    mean, std = np.asarray(CLIP_MEAN, np.float32), np.asarray(CLIP_STD, np.float32)
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def encode_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Encode losslessly as PNG, for storage."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def encode_jpeg(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Encode as JPEG with quality 95 and full color resolution, for storage."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def check_size(width: int, height: int, limits: Limits) -> None:
    """Raise DecodeError if an image or a video frame has no pixels or too many."""
    if min(width, height) < 1:
        raise DecodeError("the image has no pixels")
    if max(width, height) > limits.image_side or width * height > limits.image_pixels:
        raise DecodeError(
            "the image has too many pixels",
            f"{width} x {height}; at most {limits.image_side} per side and {limits.image_pixels} pixels",
        )


def _rgb(
    image: bytes | str | os.PathLike | PIL.Image.Image, *, at_least: int | None, limits: Limits
) -> PIL.Image.Image:
    if isinstance(image, PIL.Image.Image):
        return _load(image, at_least=None, limits=limits)
    data = bytes(image) if isinstance(image, bytes) else _read(image, limits)
    if not data:
        raise DecodeError("the image file is empty")
    try:
        return _load(_open_bytes(data, limits), at_least=at_least, limits=limits)
    except DecodeError:
        stripped = _without_metadata(data)
        if stripped == data:
            raise
        return _load(_open_bytes(stripped, limits), at_least=at_least, limits=limits)


def _load(image: PIL.Image.Image, *, at_least: int | None, limits: Limits) -> PIL.Image.Image:
    check_size(*image.size, limits)
    try:
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # has an effect on JPEGs only
        image.load()
        return _to_rgb(PIL.ImageOps.exif_transpose(image))
    except Exception as error:  # PIL raises a dozen exception types on damaged files
        raise DecodeError("the image cannot be decoded", _one_line(error)) from None


def _read(path: str | os.PathLike, limits: Limits) -> bytes:
    try:
        return read_regular_file(Path(path), max_bytes=limits.file_bytes)
    except OSError as error:
        raise DecodeError(f"{os.fspath(path)} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DecodeError(f"{os.fspath(path)!r} cannot be read ({error})") from None


def _open_bytes(data: bytes, limits: Limits) -> PIL.Image.Image:
    try:
        opened = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.UnidentifiedImageError:
        raise DecodeError("the file is not an image of a known format") from None
    except PIL.Image.DecompressionBombError:
        raise DecodeError("the image has too many pixels", f"at most {limits.image_pixels}") from None
    except Exception as error:
        raise DecodeError("the image cannot be opened", _one_line(error)) from None
    if opened.format in ("JPEG", "MPO", "TIFF") and (scans := data.count(_START_OF_SCAN)) > limits.image_scans:
        raise DecodeError("the JPEG has too many scans", f"{scans}; at most {limits.image_scans}")
    return opened


def _without_metadata(data: bytes) -> bytes:
    """Return a PNG without text and color profile, which Pillow refuses if they are large; other data unchanged."""
    if not data.startswith(_PNG_SIGNATURE):
        return data
    parts, position = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while position + 8 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] not in _PNG_TEXT:
            parts.append(data[position:end])
        position = end
    return b"".join(parts)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _bicubic(image: PIL.Image.Image, size: int) -> PIL.Image.Image:
    """Resize one dimension at a time in the order of Pillow 13, whatever the installed version.

    Values are clipped to 0..255 between the two passes, so the order matters: by up to 5 of 255 in a photograph.
    """
    width, height = image.size
    rows_first = height > size and height - size > 2 * (width - size)
    for shape in [(width, size) if rows_first else (size, height), (size, size)]:
        image = image.resize(shape, PIL.Image.Resampling.BICUBIC)
    return image


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits; PIL's own conversion clips at 255
        values = np.asarray(image).astype(np.int64)
        return PIL.Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        return PIL.Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _checked_array(image: np.ndarray, limits: Limits) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise DecodeError(f"an image array must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    check_size(image.shape[1], image.shape[0], limits)
    return image
