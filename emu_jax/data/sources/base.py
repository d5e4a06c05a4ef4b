"""What a source is: a name, the files it expects, and a function from one file to documents."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from emu_jax.data.document import Document
from emu_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rejected:
    """Something that should have been a document, and why it is none."""

    source: str
    key: str
    reason: str


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """What the user may say about the files.

    Attributes:
      media: folder, or tar, of the images or videos that the files name; by default beside the file (each source says
        where).
      min_similarity: MMC4 pages keep images whose CLIP similarity with their sentence is at least this (the paper:
      0.32).
      split: which split to take of a file that holds several (coco_karpathy).
    """

    media: Path | None = None
    min_similarity: float = 0.32
    split: str = "train"


# Names that are not UTF-8 come as ValueError, impossible sizes as the others.
_PARQUET_ERRORS = (OSError, pyarrow.ArrowException, ValueError, MemoryError, OverflowError)

_PARQUET_BUFFER = 2**16  # bytes

Found = Iterator[Document | Rejected]


@dataclasses.dataclass(frozen=True)
class Source:
    """A set's layout on disk.

    Attributes:
      name: as given to `--source`.
      files: which files `--input` should match, for help and errors.
      read: the documents and rejects of one such file, in its order, a few of them in memory at a time. It raises
        nothing for broken data, and UserError for a file that is not of this layout at all.
    """

    name: str
    files: str
    read: Callable[[Path, ReadOptions], Found]


def text_of(data: bytes) -> str:
    """UTF-8, or ValueError with a reason."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the text is not UTF-8 (byte {error.start})") from None


def json_of(data: bytes) -> Any:
    """Parsed JSON, or ValueError with a reason.

    An object with a name twice is refused: two records of which the middle is lost look like that.
    """
    try:
        return json.loads(text_of(data), object_pairs_hook=_unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the json cannot be parsed ({error})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("the json has an object with the same name twice")
    return record


def field(record: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of a JSON object, of the type wanted, or ValueError. Other fields are passed over."""
    if not isinstance(record, dict):
        raise ValueError(f"a json object was expected, not {type(record).__name__}")
    if name not in record:
        raise ValueError(f"the field {name!r} is missing")
    value = record[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"the field {name!r} is {type(value).__name__}")
    return value


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(FILE:LINE, the parsed line, or the ValueError that it raised); empty lines are passed over."""
    with open_file(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield f"{path.name}:{number}", json_of(line)
                except ValueError as error:
                    yield f"{path.name}:{number}", error


def json_list(path: Path) -> list[Any]:
    """The list that a json file holds. UserError where it holds none: nothing in such a file can be told apart."""
    value = _json_file(path)
    if not isinstance(value, list):
        raise UserError(f"{path} should hold a json list, and holds {type(value).__name__}.")
    return value


def json_object(path: Path, name: str, kind: type) -> Any:
    """What a json file holds under `name`, of the type wanted; UserError where it is not there."""
    try:
        return field(_json_file(path), name, kind)
    except ValueError as error:
        raise UserError(f"{path}: {error}.") from None


def _json_file(path: Path) -> Any:
    try:
        with open_file(path) as file:
            return json_of(file.read())
    except ValueError as error:
        raise UserError(f"{path}: {error}; nothing was read from it.") from None


def parquet_columns(path: Path) -> list[str]:
    """Names of the columns; UserError where it is no parquet file."""
    return _parquet(path).schema_arrow.names


def parquet_rows(path: Path, *, columns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(FILE:ROW, the row as a dict, or ValueError where the file is damaged from there on)."""
    file = _parquet(path)
    if missing := [c for c in columns if c not in file.schema_arrow.names]:
        raise UserError(f"{path} lacks the columns {missing}; it has {file.schema_arrow.names}.")
    row = 0
    try:
        for table in file.iter_batches(batch_size=16, columns=list(columns), use_threads=False):
            for record in table.to_pylist():
                yield f"{path.name}:{row}", record
                row += 1
    except _PARQUET_ERRORS as error:
        yield f"{path.name}:{row}", ValueError(f"the parquet is damaged from here on ({_first_line(error)})")


def _parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        # Without checksums (they are optional) a changed byte can give one row another's value: nothing else tells.
        # Buffered, a row group of any size is read page by page; else whole, and twice over.
        return pyarrow.parquet.ParquetFile(
            path, page_checksum_verification=True, pre_buffer=False, buffer_size=_PARQUET_BUFFER
        )
    except _PARQUET_ERRORS as error:
        raise UserError(f"{path} is not a parquet file ({_first_line(error)}).") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def open_file(path: Path):
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
