"""The interface of a source: a name, the files that it reads, and a function from one file to documents."""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from emu_jax.bounds import Between, Checked
from emu_jax.data.bad_data import BadData, NotDownloaded, RecordError
from emu_jax.data.document import Document, Text
from emu_jax.data.limits import DEFAULT_LIMITS, Limits
from emu_jax.errors import UserError


class Outcome(enum.Enum):
    """The reason why a record of the input is not in the prepared set."""

    BROKEN = "broken"  # cannot be read; counts towards max_rejected
    NOT_DOWNLOADED = "not downloaded"  # its image or video is absent: a failed download
    DROPPED = "dropped"  # removed by a filter: image too small, no text, ...
    DUPLICATE = "duplicate"


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A record that is not a document, or an image that a document lost.

    Attributes:
      reason: the same text for the same fault.
      detail: names and numbers; may be empty.
      is_record: False for an image that is missing from a document which is used without it.
    """

    source: str
    key: str
    reason: str
    detail: str = ""
    outcome: Outcome = Outcome.BROKEN
    is_record: bool = True


@dataclasses.dataclass(frozen=True)
class ReadOptions(Checked):
    """Options for reading the input files.

    Attributes:
      media: folder or tar with the images or videos that the files name; the default is next to each file (see each
        source).
      min_similarity: images of MMC4 pages need at least this CLIP similarity with their sentence (paper: 0.32).
      split: the split to read from a file that holds several (coco_karpathy).
      limits: bounds on sizes.
    """

    media: Path | None = None
    min_similarity: Annotated[float, Between(-1.0, 1.0)] = 0.32
    split: str = "train"
    limits: Limits = DEFAULT_LIMITS


Found = Iterator[Document | Rejected]


@dataclasses.dataclass(frozen=True)
class Source:
    """The layout of a data set on disk.

    Attributes:
      name: as passed to `--source`.
      files: description of the files that `--input` should match, for help and errors.
      suffixes: file name endings of these files, for `--input=FOLDER`.
      read: yield the documents and rejects of one file in order, with a few of them in memory at a time. Raises
        UserError for a file that does not have this layout at all; broken records are rejects.
    """

    name: str
    files: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, ReadOptions], Found]


def convert_records(
    source: str,
    records: Iterable[tuple[str, Any]],
    convert: Callable[[str, Any], Iterable[Document | Rejected]],
    *,
    limits: Limits,
) -> Found:
    """Apply `convert` to each (key, record); any error of one record becomes a reject of that record.

    A record that is an exception was broken before. UserErrors other than `BadData`, and a lack of memory, are raised.
    """
    for key, record in records:
        try:
            if isinstance(record, Exception):
                raise record
            found = list(convert(key, record))
            for document in found:
                if isinstance(document, Document):
                    check_document(document, limits)
        except NotDownloaded as error:
            yield Rejected(source, key, error.reason, error.detail, Outcome.NOT_DOWNLOADED)
        except BadData as error:
            yield Rejected(source, key, error.reason, error.detail)
        except (UserError, MemoryError):
            raise
        except Exception as error:
            yield Rejected(source, key, "the record has an unexpected form", f"{type(error).__name__}: {error}")
        else:
            yield from found


def check_document(document: Document, limits: Limits) -> None:
    """Raise RecordError if a document exceeds the limits of a record."""
    check_images(sum(not isinstance(segment, Text) for segment in document.segments), limits)
    text = sum(len(segment.text) for segment in document.segments if isinstance(segment, Text))
    if text > limits.record_text:
        raise RecordError("the text is too long", f"{text} characters, at most {limits.record_text}")


def check_images(count: int, limits: Limits) -> None:
    """Raise RecordError if a record has more images than allowed; called before they are read."""
    if count > limits.record_images:
        raise RecordError("the record has too many images", f"{count}, at most {limits.record_images}")


def decode_text(data: bytes) -> str:
    """Decode UTF-8, or raise RecordError. Zero bytes are refused: a hole in a damaged file has this form."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError("the text is not UTF-8", f"byte {error.start}") from None
    if "\0" in text:
        raise RecordError("the text has zero bytes")
    return text


def field(record: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """Return a field of a JSON object, or raise RecordError if it is missing or has another type."""
    if not isinstance(record, dict):
        raise RecordError("a JSON object was expected", type(record).__name__)
    if name not in record:
        raise RecordError(f"the field {name!r} is missing")
    value = record[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RecordError(f"the field {name!r} is {type(value).__name__}")
    return value
