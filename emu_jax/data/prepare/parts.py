"""One input file of `prepare` as one part: its documents, cleaned, as records, and notes of what became of the rest.

Engines differ in who makes the parts and who picks from them; what that means is told here, once.
"""

import dataclasses
import enum
import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from emu_jax.data.document import Document, Text, Video
from emu_jax.data.images import DecodeError
from emu_jax.data.prepare.cleaning import Dropped, PrepareConfig, clean
from emu_jax.data.records import from_record, serialize, to_example
from emu_jax.data.sources import SOURCES, Rejected

SAMPLES = 48  # documents on the contact sheet
_DIGEST = 16  # bytes

Reject = dict[str, str]


class Outcome(enum.Enum):
    """Why a document is not in the prepared set."""

    BROKEN = "broken"  # counts towards max_rejected
    DROPPED = "dropped"  # whole, but not wanted: too small, no text, ...
    DUPLICATE = "duplicate"


@dataclasses.dataclass(frozen=True)
class Task:
    """A part to be made: of the input file `path`, called `name` in keys, at STEM.records and STEM.json."""

    path: Path
    stem: Path
    name: str


@dataclasses.dataclass(frozen=True)
class Part:
    """A part that has been made; what is long stays in its files.

    Attributes:
      read: documents (and what should have been one) in the input file.
      broken: rejects that count towards `max_rejected`.
      records: documents in STEM.records.
    """

    stem: Path
    read: int
    broken: int
    records: int

    def rejects(self) -> list[Reject]:
        """What is not among the records, in order."""
        return json.loads(_notes(self.stem).read_text())["rejects"]

    def forget(self) -> None:
        """Lets the part be made again."""
        _notes(self.stem).unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Picked:
    """What of a part is in the set.

    Attributes:
      samples: (digest, number of the record): the `SAMPLES` first by digest, which is as good as by lot.
    """

    written: int
    images: int
    characters: int
    duplicates: list[Reject]
    samples: list[tuple[str, int]]


def make_part(task: Task, *, config: PrepareConfig) -> Part:
    """Reads, checks and cleans one input file; found whole from an earlier run, its part is not made again.

    Raises:
      UserError: the file is not of this layout.
    """
    records, notes = _records(task.stem), _notes(task.stem)
    if notes.exists():
        saved = json.loads(notes.read_text())
        return Part(task.stem, saved["read"], saved["broken"], saved["records"])
    rejects: list[Reject] = []
    digests: list[bytes] = []
    read = 0

    def reject(key: str, reason: str, outcome: Outcome) -> None:
        source = config.name or config.source
        rejects.append({"source": source, "key": key, "outcome": outcome.value, "reason": reason})

    temporary = records.with_suffix(".tmp")
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
    try:
        for found in SOURCES[config.source].read(task.path, config.options):
            read += 1
            key = task.name + found.key.removeprefix(task.path.name)
            if isinstance(found, Rejected):
                reject(key, found.reason, Outcome.BROKEN)
                continue
            try:
                document = clean(dataclasses.replace(found, key=key), config)
                writer.write(serialize(document))
                digests.append(_digest(document))
            except DecodeError as error:
                reject(key, str(error), Outcome.BROKEN)
            except Dropped as reason:
                reject(key, str(reason), Outcome.DROPPED)
    finally:
        writer.close()
    temporary.replace(records)
    _digests(task.stem).write_bytes(b"".join(digests))
    broken = sum(reject["outcome"] == Outcome.BROKEN.value for reject in rejects)
    made = Part(task.stem, read, broken, len(digests))
    # Last: with its notes a part is whole.
    write_atomically(notes, json.dumps({"read": read, "broken": broken, "records": made.records, "rejects": rejects}))
    return made


def pick(stem: Path, chosen: Sequence[int], *, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The chosen records of a part as numbered examples: record i has the number `first + i`.

    Once they have all been taken, `picked(stem)` tells what they were.
    """
    wanted = set(chosen)
    images = characters = 0
    duplicates: list[Reject] = []
    for number, document in enumerate(documents(stem)):
        if number not in wanted:
            same = {"outcome": Outcome.DUPLICATE.value, "reason": "the same as one before"}
            duplicates.append({"source": document.source, "key": document.key, **same})
            continue
        for segment in document.segments:
            if isinstance(segment, Text):
                characters += len(segment.text)
            else:
                images += len(segment.data) if isinstance(segment, Video) else 1
        yield first + number, to_example(document)
    samples = heapq.nsmallest(
        SAMPLES, ((d.hex(), number) for number, d in enumerate(digests(stem)) if number in wanted)
    )
    told = Picked(len(wanted), images, characters, duplicates, samples)
    write_atomically(stem.with_suffix(".picked"), json.dumps(dataclasses.asdict(told)))


def picked(stem: Path) -> Picked:
    """What `pick` told of a part."""
    return Picked(**json.loads(stem.with_suffix(".picked").read_text()))


def documents(stem: Path, numbers: Sequence[int] | None = None) -> Iterator[Document]:
    """The records of a part, all or the numbered ones."""
    reader = array_record_module.ArrayRecordReader(str(_records(stem)))
    try:
        for i in range(reader.num_records()) if numbers is None else numbers:
            yield from_record(reader.read([i])[0])
    finally:
        reader.close()


def digests(stem: Path) -> list[bytes]:
    """One for each record of a part, the same for documents of the same content."""
    data = _digests(stem).read_bytes()
    return [data[i : i + _DIGEST] for i in range(0, len(data), _DIGEST)]


def write_atomically(path: Path, text: str) -> None:
    """Writes a file under its name only when it is complete."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _records(stem: Path) -> Path:
    return stem.with_suffix(".records")


def _notes(stem: Path) -> Path:
    return stem.with_suffix(".json")


def _digests(stem: Path) -> Path:
    return stem.with_suffix(".digests")


def _digest(document: Document) -> bytes:
    """The same for documents with the same segments, whatever their keys."""
    digest = hashlib.blake2b(document.layout.value.encode(), digest_size=_DIGEST)
    example = to_example(document)
    for name in ("kinds", "roles", "frames"):
        digest.update(np.asarray(example[name], np.int32).tobytes() + b"|")
    for blob in [*example["texts"], *example["blobs"]]:
        digest.update(len(blob).to_bytes(8, "little") + blob)
    return digest.digest()
