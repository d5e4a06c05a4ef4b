"""Examples for the visual decoder, computed once: what Emu's embeddings of a picture are, and the picture's latents.

A folder holds `examples.json` (shapes and where they come from), `unconditional.npy` (the embeddings of the empty
prompt, `[Q, D]`) and `examples.array_record`: of each example the float32 values of `conditioning [Q D]`,
`latent_mean [h w C]` and `latent_log_variance [h w C]`, one after the other.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python import array_record_data_source, array_record_module

from emu_jax.errors import UserError

SETTINGS, UNCONDITIONAL, RECORDS = "examples.json", "unconditional.npy", "examples.array_record"
FIELDS = ("conditioning", "latent_mean", "latent_log_variance")

Example = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DecoderExamples:
    """A folder of examples.

    Attributes:
      shapes: of each field.
      unconditional: embeddings of the empty prompt, float32 `[Q, D]`.
    """

    directory: Path
    shapes: dict[str, tuple[int, ...]]
    unconditional: np.ndarray

    @classmethod
    def open(cls, directory: str | os.PathLike) -> "DecoderExamples":
        """Raises UserError where there are none."""
        directory = Path(directory)
        if not (directory / SETTINGS).is_file():
            raise UserError(f"{directory} holds no decoder examples; make them with prepare-decoder-data.")
        shapes = json.loads((directory / SETTINGS).read_text())["shapes"]
        return cls(
            directory=directory,
            shapes={name: tuple(shapes[name]) for name in FIELDS},
            unconditional=np.load(directory / UNCONDITIONAL),
        )

    def loader(
        self, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
    ) -> grain.DatasetIterator:
        """Batches `{field: float32 [rows, ...]}` for ever, this process's rows of each; resumable at any batch."""
        if batch_size % process_count:
            raise UserError(f"A batch of {batch_size} examples does not divide among {process_count} processes.")
        source = array_record_data_source.ArrayRecordDataSource([str(self.directory / RECORDS)])
        dataset = grain.MapDataset.source(source).seed(seed).shuffle()[process_index::process_count]
        return iter(dataset.map(self._parse).repeat().to_iter_dataset().batch(batch_size // process_count))

    def _parse(self, record: bytes) -> dict[str, np.ndarray]:
        values = np.frombuffer(record, np.float32)
        ends = np.cumsum([int(np.prod(self.shapes[name])) for name in FIELDS])
        parts = np.split(values, ends[:-1])
        return {name: part.reshape(self.shapes[name]) for name, part in zip(FIELDS, parts, strict=True)}


def write_examples(
    directory: str | os.PathLike,
    examples: Iterable[Example],
    *,
    unconditional: np.ndarray,
    settings: Mapping[str, Any],
) -> int:
    """Writes a folder of examples and counts them; `examples.json` last, without which it is none.

    Raises:
      UserError: there was not one example.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{RECORDS}.partial"
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
    count, shapes = 0, {}
    for example in examples:
        arrays = [np.ascontiguousarray(example[name], np.float32) for name in FIELDS]
        shapes = {name: list(array.shape) for name, array in zip(FIELDS, arrays, strict=True)}
        writer.write(b"".join(array.tobytes() for array in arrays))
        count += 1
    writer.close()
    if not count:
        partial.unlink()
        raise UserError(f"No picture with a caption was found, so {directory} was not written.")
    partial.replace(directory / RECORDS)
    np.save(directory / UNCONDITIONAL, np.asarray(unconditional, np.float32))
    written = directory / f".{SETTINGS}.partial"
    written.write_text(json.dumps({"count": count, "shapes": shapes, **settings}, indent=2) + "\n")
    written.replace(directory / SETTINGS)
    return count
