"""Write training examples of the visual decoder as shards: by any number of processes, and resumable after each shard.

Shard i holds the documents `i * shard_size` to `(i + 1) * shard_size - 1` of all sets, so the files do not depend on
the number of processes. A shard appears under its name only when it is complete; SHARD.json, with its counts,
is written after it. The process that finds all shards complete writes `examples.json`, which makes the folder valid.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from emu_jax.data.loader.visual_decoder_examples import DTYPES, FIELDS, SETTINGS, UNCONDITIONAL, Example, shard_name
from emu_jax.errors import UserError
from emu_jax.io.files import atomic_file, file_errors, read_json, write_json

_STARTED = "started.json"


@dataclasses.dataclass(frozen=True)
class DecoderShards:
    """The shards of an output folder.

    Attributes:
      documents: number of documents of all sets.
      shard_size: documents per shard; a stopped process loses at most so many.
      dtype: of the stored values, a key of `DTYPES`.
      unconditional: embeddings of the empty prompt, `[Q D]`.
      settings: what the examples are made from, stored in `examples.json`.
    """

    directory: Path
    documents: int
    shard_size: int
    dtype: str
    unconditional: np.ndarray
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.shard_size < 1 or self.documents < 1:
            raise UserError(f"There must be at least one document and one per shard, not {self.documents}.")
        if self.dtype not in DTYPES:
            raise UserError(f"The examples are stored as {' or '.join(DTYPES)}, not {self.dtype!r}.")

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-self.documents // self.shard_size)

    def start(self) -> None:
        """Create the folder, or resume in it.

        Raises:
          UserError: the folder has examples of other sets, of another model, or with other settings.
        """
        embeddings = np.ascontiguousarray(self.unconditional, np.float32)
        identity = {
            **self.settings,
            "documents": self.documents,
            "shard_size": self.shard_size,
            "dtype": self.dtype,
            "unconditional": hashlib.sha256(embeddings.tobytes()).hexdigest(),
        }
        path = self.directory / _STARTED
        if path.exists() and read_json(path) != identity:
            raise UserError(
                f"{self.directory} has examples of other sets, of another model, or with other settings. Remove it, or "
                "name another folder."
            )
        with file_errors("write", self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.directory / UNCONDITIONAL) as temporary, open(temporary, "wb") as file:
            np.save(file, embeddings)
        write_json(path, identity)

    def missing(self, *, process_index: int = 0, process_count: int = 1) -> list[int]:
        """Return the shards of one process that are not complete."""
        return [i for i in range(process_index, self.count, process_count) if not self._summary(i).exists()]

    def span(self, shard: int) -> range:
        """Return the numbers of the documents of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.documents))

    def write(self, shard: int, examples: Iterable[Example | None]) -> None:
        """Write one shard; None is a document that was left out, and has an empty record."""
        path, count, shapes = self.directory / shard_name(shard, self.count), 0, {}
        for leftover in self.directory.glob(f".{path.name}.*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        with atomic_file(path) as temporary:
            writer = array_record_module.ArrayRecordWriter(os.fspath(temporary), "group_size:1")
            try:
                for example in examples:
                    if example is None:
                        writer.write(b"")
                        continue
                    arrays = [np.ascontiguousarray(example[name]).astype(DTYPES[self.dtype]) for name in FIELDS]
                    shapes = {name: list(array.shape) for name, array in zip(FIELDS, arrays, strict=True)}
                    writer.write(b"".join(array.tobytes() for array in arrays))
                    count += 1
            finally:
                writer.close()
        write_json(self._summary(shard), {"count": count, "shapes": shapes})

    def finish(self) -> int | None:
        """Complete the folder and return its number of examples; None while shards of other processes are missing.

        Raises:
          UserError: there is no example.
        """
        if self.missing():
            return None
        shards = [read_json(self._summary(i)) for i in range(self.count)]
        count = sum(shard["count"] for shard in shards)
        if not count:
            raise UserError(f"No image with a caption was found, so {self.directory} has no examples.")
        shapes = next(shard["shapes"] for shard in shards if shard["count"])
        written = {"count": count, "shards": self.count, "dtype": self.dtype, "shapes": shapes, **self.settings}
        write_json(self.directory / SETTINGS, written)
        return count

    def _summary(self, shard: int) -> Path:
        return self.directory / f"{shard_name(shard, self.count)}.json"
