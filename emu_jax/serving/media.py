"""Images and videos of a request: where they may come from, how large they may be, and their pixels."""

from __future__ import annotations

import base64
import binascii
import io
import re

import av
import numpy as np
import PIL.Image

from emu_jax.data.images import FORMATS, DecodeError, preprocess
from emu_jax.data.video import take_frames
from emu_jax.generation.prompt import VIDEO_FRAMES
from emu_jax.serving.config import Limits
from emu_jax.serving.errors import ApiError
from emu_jax.serving.fetch import fetch

_DATA_URL = re.compile(
    r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<parameters>(;[\w.+=-]+)*?)(?P<base64>;base64)?,", re.ASCII
)


def read_url(url: str, *, field: str, kind: str, limits: Limits) -> bytes:
    """Return the bytes of a data URL, or of a URL on an allowed host; `kind` is "image" or "video".

    Raises:
      ApiError: a malformed URL, another type, a host that is not allowed, or too many bytes (413).
    """
    if not url.startswith("data:"):
        return fetch(url, field=field, limits=limits)
    match = _DATA_URL.match(url)
    if match is None or not match["base64"]:
        raise ApiError(400, f"{field} is not a data URL of the form data:{kind}/...;base64,...", param=field)
    if not (match["type"] or "").startswith(f"{kind}/"):
        raise ApiError(400, f"{field} is of type {match['type'] or 'text/plain'}, not {kind}/...", param=field)
    encoded = url[match.end() :]
    check_bytes(len(encoded) * 3 // 4 - encoded.count("=", -2), field=field, limits=limits)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{field} is not valid base64 ({error}).", param=field) from None


def check_bytes(count: int, *, field: str, limits: Limits) -> None:
    """Raise ApiError (413) for a file that is too large."""
    if count > limits.max_image_bytes:
        raise ApiError(413, f"{field} has {count} bytes; at most {limits.max_image_bytes} are allowed.", param=field)


def read_image(data: bytes, size: int, *, field: str, limits: Limits) -> np.ndarray:
    """Return the pixels of an encoded image as the model reads them, uint8 `[size, size, 3]`.

    Raises:
      ApiError: not an image, a broken one, or one of too many pixels (413), which is not decoded.
    """
    check_bytes(len(data), field=field, limits=limits)
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(*image.size, field=field, limits=limits)
    except PIL.Image.DecompressionBombError:
        raise _too_many_pixels("too many pixels", field=field, limits=limits) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ApiError(400, f"{field} is not an image that can be read ({_short(error)}).", param=field) from None
    try:
        return preprocess(data, size)
    except DecodeError as error:
        raise ApiError(400, f"{field}: {error}.", param=field) from None


def read_video(data: bytes, size: int, *, field: str, limits: Limits) -> list[np.ndarray]:
    """Return the uniform frames of an encoded video that stand for it, uint8 `[size, size, 3]` each.

    Raises:
      ApiError: not a video, or one with too large frames (413), which is not decoded.
    """
    check_bytes(len(data), field=field, limits=limits)
    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            sizes = [(stream.width, stream.height) for stream in container.streams.video]
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ApiError(400, f"{field} is not a video that can be read ({_short(error)}).", param=field) from None
    for width, height in sizes:
        _check_pixels(width, height, field=field, limits=limits)
    try:
        return list(take_frames(data, frames=VIDEO_FRAMES, size=size))
    except DecodeError as error:
        raise ApiError(400, f"{field}: {error}.", param=field) from None


def _check_pixels(width: int, height: int, *, field: str, limits: Limits) -> None:
    if width * height > limits.max_image_pixels:
        raise _too_many_pixels(f"{width} x {height} pixels", field=field, limits=limits)


def _too_many_pixels(count: str, *, field: str, limits: Limits) -> ApiError:
    return ApiError(413, f"{field} has {count}; at most {limits.max_image_pixels} are allowed.", param=field)


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
