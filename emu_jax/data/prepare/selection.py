"""Select the records of a part that belong to the prepared set, without duplicates."""

import dataclasses
import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emu_jax.data.document import Text, Video
from emu_jax.data.prepare.part_files import RECORD, Reject, read_digests, read_documents
from emu_jax.data.records import to_example
from emu_jax.data.sources import Outcome
from emu_jax.io.files import read_json, write_json

SAMPLES = 48  # documents on the contact sheet


@dataclasses.dataclass(frozen=True)
class Selection:
    """The counts of the selected records of a part.

    Attributes:
      written: number of selected records.
      images, characters: in these records.
      duplicates: rejects for the other records.
      samples: (digest, index in the part) of the `SAMPLES` records with the smallest digests, a pseudo-random sample.
    """

    written: int
    images: int
    characters: int
    duplicates: list[Reject]
    samples: list[tuple[str, int]]


def select_records(stem: Path, indices: Sequence[int], *, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the records of a part at `indices` as numbered examples: record i has the number `first + i`.

    Once the iterator is exhausted, `read_selection(stem)` returns the counts.
    """
    selected = set(indices)
    images = characters = 0
    duplicates: list[Reject] = []
    for index, document in enumerate(read_documents(stem)):
        if index not in selected:
            outcome = {"outcome": Outcome.DUPLICATE.value, "reason": "same content as an earlier document"}
            duplicates.append({"source": document.source, "key": document.key, "unit": RECORD, **outcome})
            continue
        for segment in document.segments:
            if isinstance(segment, Text):
                characters += len(segment.text)
            else:
                images += len(segment.data) if isinstance(segment, Video) else 1
        yield first + index, to_example(document)
    samples = heapq.nsmallest(
        SAMPLES, ((digest.hex(), index) for index, digest in enumerate(read_digests(stem)) if index in selected)
    )
    selection = Selection(len(selected), images, characters, duplicates, samples)
    write_json(_path(stem), dataclasses.asdict(selection))


def read_selection(stem: Path) -> Selection:
    """Return the counts of a part whose records have been selected."""
    return Selection(**read_json(_path(stem)))


def _path(stem: Path) -> Path:
    return stem.with_suffix(".selection.json")
