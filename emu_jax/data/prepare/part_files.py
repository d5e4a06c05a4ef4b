"""Convert one input file to a part: its cleaned documents as records, and the rejects.

A part has three files: STEM.records, STEM.digests and, written last, STEM.json.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from emu_jax.data.bad_data import BadData
from emu_jax.data.document import Document
from emu_jax.data.prepare.cleaning import Dropped, PrepareConfig, clean
from emu_jax.data.records import from_record, serialize, to_example
from emu_jax.data.sources import SOURCES, Outcome, Rejected
from emu_jax.errors import UserError
from emu_jax.io.files import atomic_file, read_json, write_bytes, write_json

_DIGEST = 16  # bytes

Reject = dict[str, str]

RECORD, IMAGE = "record", "image"  # the unit that a reject counts


@dataclasses.dataclass(frozen=True)
class Task:
    """A part to be made from the input file `path`, called `name` in keys, at STEM.records and STEM.json."""

    path: Path
    stem: Path
    name: str


@dataclasses.dataclass(frozen=True)
class Part:
    """A finished part; its documents and rejects stay in its files.

    Attributes:
      read: number of documents in the input file, with those that could not be read.
      broken: rejects that count towards `max_rejected`.
      records: documents in STEM.records.
    """

    stem: Path
    read: int
    broken: int
    records: int

    def rejects(self) -> list[Reject]:
        """Return the documents that are not among the records, in order."""
        return read_json(_summary(self.stem))["rejects"]


def make_part(task: Task, *, config: PrepareConfig) -> Part:
    """Read, check and clean one input file, unless an earlier run has finished its part.

    Raises:
      UserError: the file does not have the layout of the source.
    """
    records, summary = _records(task.stem), _summary(task.stem)
    if summary.exists():
        saved = read_json(summary)
        return Part(task.stem, saved["read"], saved["broken"], saved["records"])
    rejects: list[Reject] = []
    digests: list[bytes] = []
    read = 0
    with atomic_file(records) as temporary:
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
        try:
            for found in SOURCES[config.source].read(task.path, config.options):
                key = _printable(task.name + found.key.removeprefix(task.path.name))
                source = config.name or config.source
                if isinstance(found, Document):
                    found = _clean_or_reject(dataclasses.replace(found, key=key), config)
                read += not isinstance(found, Rejected) or found.is_record
                if isinstance(found, Rejected):
                    rejects.append(_reject(dataclasses.replace(found, source=source, key=key)))
                else:
                    writer.write(serialize(found))
                    digests.append(_digest(found))
        finally:
            writer.close()
    write_bytes(_digests(task.stem), b"".join(digests))
    broken = sum(reject["outcome"] == Outcome.BROKEN.value and reject["unit"] == RECORD for reject in rejects)
    part = Part(task.stem, read, broken, len(digests))
    write_json(summary, {"read": read, "broken": broken, "records": part.records, "rejects": rejects}, indent=None)
    return part


def _clean_or_reject(document: Document, config: PrepareConfig) -> Document | Rejected:
    """Return the cleaned document, or a reject for any error in it."""
    try:
        return clean(document, config)
    except Dropped as reason:
        return Rejected(document.source, document.key, str(reason), outcome=Outcome.DROPPED)
    except BadData as error:
        return Rejected(document.source, document.key, error.reason, error.detail)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        return Rejected(
            document.source, document.key, "the document has an unexpected form", f"{type(error).__name__}: {error}"
        )


def _reject(rejected: Rejected) -> Reject:
    reject = {
        "source": rejected.source,
        "key": rejected.key,
        "unit": RECORD if rejected.is_record else IMAGE,
        "outcome": rejected.outcome.value,
        "reason": _printable(rejected.reason),
    }
    return reject | ({"detail": _printable(rejected.detail)} if rejected.detail else {})


def _printable(text: str) -> str:
    """Return text that UTF-8 can encode: names in tars and JSON may have unpaired surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def discard_part(stem: Path) -> None:
    """Delete the summary of a part, so that `make_part` makes it again."""
    _summary(stem).unlink(missing_ok=True)


def part_records(stem: Path) -> int:
    """Return the number of records of a part; 0 if it is not finished."""
    return len(read_digests(stem)) if _summary(stem).exists() else 0


def read_documents(stem: Path, indices: Sequence[int] | None = None) -> Iterator[Document]:
    """Yield the documents of a part: all, or those at `indices`."""
    reader = array_record_module.ArrayRecordReader(str(_records(stem)))
    try:
        for i in range(reader.num_records()) if indices is None else indices:
            yield from_record(reader.read([i])[0])
    finally:
        reader.close()


def read_digests(stem: Path) -> list[bytes]:
    """Return one digest for each record of a part; documents with the same content have the same digest."""
    data = _digests(stem).read_bytes()
    return [data[i : i + _DIGEST] for i in range(0, len(data), _DIGEST)]


def _records(stem: Path) -> Path:
    return stem.with_suffix(".records")


def _summary(stem: Path) -> Path:
    return stem.with_suffix(".json")


def _digests(stem: Path) -> Path:
    return stem.with_suffix(".digests")


def _digest(document: Document) -> bytes:
    """Return a hash of layout and segments, without source and key."""
    digest = hashlib.blake2b(document.layout.value.encode(), digest_size=_DIGEST)
    example = to_example(document)
    for name in ("kinds", "roles", "frames"):
        digest.update(np.asarray(example[name], np.int32).tobytes() + b"|")
    for blob in [*example["texts"], *example["references"], *example["blobs"]]:
        digest.update(len(blob).to_bytes(8, "little") + blob)
    return digest.digest()
