"""Decide which parts of a prompt are image and video files."""

import dataclasses
import os
from pathlib import Path

import PIL.Image

from emu_jax.data.images import FORMATS

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif")
)
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv", ".3gp")
)

_MAX_NAME = 4096  # characters of a file name


@dataclasses.dataclass(frozen=True)
class Image:
    """An image file as part of a prompt, whatever its name: `emu_jax.Image("scan 1")`."""

    path: str | os.PathLike


@dataclasses.dataclass(frozen=True)
class Video:
    """A video file as part of a prompt, whatever its name: `emu_jax.Video("clip.bin")`."""

    path: str | os.PathLike


class PlainText(str):
    """Text that never names a file: for text from models and from users of other machines."""


def named_file(text: str) -> Path | None:
    """Return the file that a string of a prompt names, or None if the string is text.

    A string is a file name if a file of exactly this name exists, or if it has no white space and ends like an image or
    a video (`photos/cat.jpg`); then a missing file is an error of the caller. Everything else is text. A leading space
    makes the name of a file a text. In Python, a `pathlib.Path`, an `Image` or a `Video` is always a file, and a
    `PlainText` is always text.
    """
    if isinstance(text, PlainText) or not text or len(text) > _MAX_NAME or "\n" in text or "\x00" in text:
        return None
    path = Path(text)
    try:
        exists = path.is_file()
    except OSError:  # for example, a part of the name is too long
        exists = False
    ends_like_media = path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and not any(c.isspace() for c in text)
    return path if exists or ends_like_media else None


def is_video(path: str | os.PathLike) -> bool:
    """Return True if a file is a video: by the end of its name or, for an unknown one, because it is not an image."""
    suffix = Path(path).suffix.lower()
    if suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        return suffix in VIDEO_SUFFIXES
    try:
        with PIL.Image.open(path, formats=FORMATS):
            return False
    except Exception:  # not an image of a known format, or unreadable
        return True
