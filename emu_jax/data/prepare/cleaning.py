"""What is kept of a document, and how its pictures are stored."""

import dataclasses
import enum

import numpy as np

from emu_jax.data.document import Document, Image, Segment, Text, Video
from emu_jax.data.images import DecodeError, decode, encode_jpeg, encode_png, resize
from emu_jax.data.sources import SOURCES, ReadOptions
from emu_jax.data.video import take_frames
from emu_jax.errors import UserError


class Store(enum.Enum):
    """How the resized pixels of a prepared set are stored."""

    PNG = "png"  # lossless
    JPEG = "jpeg"  # quality 95, full colour: a third of the bytes, read 2.7 times as fast, off by 0.5 of 255 on average
    RAW = "raw"  # uint8 pixels: nothing to decode, worth it up to some 64 x 64 pixels


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """What is kept of the documents and how.

    Attributes:
      source: layout of the input, a name of `emu_jax.data.sources.SOURCES`.
      name: of the set, in its documents; the source's where left empty.
      image_size: pixels; every image is stored at this size, its aspect not kept, as in the release. None stores the
        files as they are (they are decoded all the same, to be sure that they can be).
      exact: pixels to the bit as the release resizes them; otherwise large JPEGs are decoded at a reduced scale, in
        less than half the time (see `images.decode`).
      store: how resized pixels are stored.
      frames: frames kept of a video, evenly spread. The loader may take fewer of them.
      min_side: images with a side below this are dropped.
      max_aspect: and those with one side longer than this many times the other.
      max_rejected: share of broken documents above which preparing stops.
      options: for the reader.
    """

    source: str
    name: str = ""
    image_size: int | None = 224
    exact: bool = False
    store: Store = Store.PNG
    frames: int = 8
    min_side: int = 16
    max_aspect: float = 8.0
    max_rejected: float = 0.01
    options: ReadOptions = dataclasses.field(default_factory=ReadOptions)

    def __post_init__(self):
        if self.source not in SOURCES:
            raise UserError(f"There is no source {self.source!r}; the sources are {', '.join(SOURCES)}.")
        if self.store is Store.RAW and self.image_size is None:
            raise UserError("store=raw wants an image_size: pixels of any size would not fit a batch.")


class Dropped(Exception):
    """The document is whole and not wanted; the message says why."""


def clean(document: Document, config: PrepareConfig) -> Document:
    """The document as it is stored: videos as frames, every image decoded, resized, and encoded again if it changed.

    Raises:
      DecodeError: an image or a video cannot be decoded.
      Dropped: a rule leaves it out.
    """
    segments: list[Segment] = []
    for segment in document.segments:
        if isinstance(segment, Text):
            segments.append(Text(_text(segment.text), segment.role))
        elif isinstance(segment, Image):
            segments.append(Image(_image(segment.data, config), segment.role))
        elif isinstance(segment.data, bytes):
            taken = take_frames(segment.data, frames=config.frames)
            segments.append(Video(tuple(Image(_image(frame, config)) for frame in taken), segment.role))
        else:
            frames = tuple(Image(_image(frame.data, config)) for frame in segment.data)
            segments.append(Video(frames, segment.role))
    if not any(isinstance(s, Text) and s.text for s in segments):
        raise Dropped("no text")
    return dataclasses.replace(document, source=config.name or document.source, segments=tuple(segments))


def _text(text: str) -> str:
    text = text.replace("\x00", "").strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DecodeError("the text holds half a surrogate pair, which is not Unicode") from None
    return text


def _image(data: bytes | np.ndarray, config: PrepareConfig) -> bytes | np.ndarray:
    size = config.image_size
    pixels = decode(data, at_least=None if size is None or config.exact else max(size, config.min_side))
    height, width = pixels.shape[:2]
    if min(height, width) < config.min_side:
        raise Dropped("an image is too small")
    if max(height, width) > config.max_aspect * min(height, width):
        raise Dropped("an image is too long")
    if size is None:
        return data if isinstance(data, bytes) else encode_png(pixels)
    pixels = resize(pixels, size)
    if config.store is Store.RAW:
        return pixels
    return encode_png(pixels) if config.store is Store.PNG else encode_jpeg(pixels)
