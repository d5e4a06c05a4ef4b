"""The document, which every source yields: one ordered list of texts, images and videos."""

import dataclasses
import enum

import numpy as np


class Layout(enum.Enum):
    """The kind of a document, which decides its token sequence (see `emu_jax.data.sequence`)."""

    PAIR = "pair"
    PAGE = "page"
    STORYBOARD = "storyboard"
    VIDEO = "video"
    CHAT = "chat"
    PREFERENCE = "preference"  # a chat whose last question has a chosen and a rejected answer


class Role(enum.Enum):
    """The speaker of a segment in a chat."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    REJECTED = "rejected"  # the rejected answer of a PREFERENCE, after the chosen one


@dataclasses.dataclass(frozen=True)
class Text:
    """A text segment."""

    text: str
    role: Role | None = None


@dataclasses.dataclass(frozen=True)
class Image:
    """An image segment: an encoded file (`bytes`) or pixels (`uint8 [H, W, 3]`)."""

    data: bytes | np.ndarray
    role: Role | None = None


@dataclasses.dataclass(frozen=True)
class Video:
    """A video segment: an encoded file (`bytes`) or frames in time order."""

    data: bytes | tuple[Image, ...]
    role: Role | None = None


Segment = Text | Image | Video


@dataclasses.dataclass(frozen=True)
class Document:
    """One sample of a data set.

    Attributes:
      segments: texts, images and videos in reading order.
      source: name of the data set, as in the mixture.
      key: identifier within the data set (file and position in the file); part of every message about the document.
      layout: the kind of the document.
      references: all reference answers of a benchmark question, for evaluation; not used in training.
    """

    segments: tuple[Segment, ...]
    source: str
    key: str
    layout: Layout
    references: tuple[str, ...] = ()
