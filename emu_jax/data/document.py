"""What every source yields: one ordered list of text, images and videos."""

import dataclasses
import enum

import numpy as np


class Layout(enum.Enum):
    """How a document becomes a sequence (see `emu_jax.data.sequence`)."""

    PAIR = "pair"
    PAGE = "page"
    STORYBOARD = "storyboard"
    VIDEO = "video"
    CHAT = "chat"


class Role(enum.Enum):
    """Who speaks, in a chat."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclasses.dataclass(frozen=True)
class Text:
    text: str
    role: Role | None = None


@dataclasses.dataclass(frozen=True)
class Image:
    """An encoded file (`bytes`) or pixels (`uint8 [H, W, 3]`)."""

    data: bytes | np.ndarray
    role: Role | None = None


@dataclasses.dataclass(frozen=True)
class Video:
    """An encoded file (`bytes`) or the frames taken from one, in time order."""

    data: bytes | tuple[Image, ...]
    role: Role | None = None


Segment = Text | Image | Video


@dataclasses.dataclass(frozen=True)
class Document:
    """One sample of any set.

    Attributes:
      segments: text, images and videos in reading order.
      source: the set it came from, as named in the mixture.
      key: what finds it again in that set (a file and a place in it); named in every complaint.
      layout: how it is laid out as a sequence.
    """

    segments: tuple[Segment, ...]
    source: str
    key: str
    layout: Layout
