"""Precomputed training examples of the visual decoder: Emu's embeddings of an image, and the latents of the image.

A folder holds `examples.json` (shapes and settings), `unconditional.npy` (the embeddings of the empty prompt, `[Q, D]`)
and `examples.array_record`. Each record is the float32 values of `conditioning [Q D]`, `latent_mean [h w C]` and
`latent_log_variance [h w C]`, concatenated. A document that was skipped (for example because its caption is too long)
has an empty record, so that a run reads the others in the order in which it would read the documents.
"""

import dataclasses
import enum
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python import array_record_data_source, array_record_module

from emu_jax.bounds import Checked, Positive
from emu_jax.errors import UserError
from emu_jax.io.files import read_json, write_json

SETTINGS, UNCONDITIONAL, RECORDS = "examples.json", "unconditional.npy", "examples.array_record"
FIELDS = ("conditioning", "latent_mean", "latent_log_variance")

Example = Mapping[str, np.ndarray]


class Condition(enum.Enum):
    """The conditioning of the U-Net for an image."""

    PREDICTED = "predicted"  # embeddings that Emu generates from the caption (the paper)
    ENCODED = "encoded"  # embeddings of the image by the encoder (autoencoding, as in Emu2)


@dataclasses.dataclass(frozen=True)
class WeightedSet(Checked):
    """A folder, and the relative number of examples drawn from it."""

    path: str
    weight: Positive = 1.0


def endless(
    sources: Sequence[Any], *, weights: Sequence[float], seed: int, process_index: int, process_count: int
) -> grain.MapDataset:
    """Return the endless items of this process from all `sources`, drawn by `weights`.

    Each source is shuffled differently in every pass.

    Raises:
      UserError: no sources, or a weight that is not positive.
    """
    if not sources or not all(weight > 0 for weight in weights):
        raise UserError(f"Name at least one set of examples, each with a weight above 0, not {list(weights)}.")
    passes = [grain.MapDataset.source(source).seed(seed).shuffle().repeat() for source in sources]
    mixed = passes[0] if len(passes) == 1 else grain.MapDataset.mix(passes, weights=list(weights))
    return mixed[process_index::process_count]


def rows_per_process(batch_size: int, process_count: int) -> int:
    """Return this process's rows of a global batch. Raises UserError if it does not divide among the processes."""
    if batch_size % process_count:
        raise UserError(f"A batch of {batch_size} examples does not divide among {process_count} processes.")
    return batch_size // process_count


@dataclasses.dataclass(frozen=True)
class DecoderExamples:
    """A folder of examples.

    Attributes:
      shapes: shape of each field.
      unconditional: embeddings of the empty prompt, float32 `[Q, D]`.
    """

    directory: Path
    shapes: dict[str, tuple[int, ...]]
    unconditional: np.ndarray

    @classmethod
    def open(cls, directory: str | os.PathLike) -> "DecoderExamples":
        """Open a folder. Raises UserError if it holds no examples."""
        directory = Path(directory)
        if not (directory / SETTINGS).is_file():
            raise UserError(f"{directory} holds no decoder examples; make them with prepare-decoder-data.")
        shapes = read_json(directory / SETTINGS)["shapes"]
        return cls(
            directory=directory,
            shapes={name: tuple(shapes[name]) for name in FIELDS},
            unconditional=np.load(directory / UNCONDITIONAL),
        )

    def loader(
        self, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
    ) -> grain.DatasetIterator:
        """Return endless batches `{field: float32 [rows, ...]}` of this process, resumable at any batch."""
        return load_examples(
            [self], weights=[1.0], batch_size=batch_size, seed=seed,
            process_index=process_index, process_count=process_count,
        )  # fmt: skip

    def _parse(self, record: bytes) -> dict[str, np.ndarray]:
        values = np.frombuffer(record, np.float32)
        ends = np.cumsum([int(np.prod(self.shapes[name])) for name in FIELDS])
        parts = np.split(values, ends[:-1])
        return {name: part.reshape(self.shapes[name]) for name, part in zip(FIELDS, parts, strict=True)}


def load_examples(
    sets: Sequence[DecoderExamples],
    *,
    weights: Sequence[float],
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Return the iterator of `DecoderExamples.loader` over several folders, drawn by `weights`.

    Raises:
      UserError: the folders have different shapes or unconditional embeddings, or the batch size does not divide among
        the processes.
    """
    for other in sets[1:]:
        if other.shapes != sets[0].shapes or not np.array_equal(other.unconditional, sets[0].unconditional):
            raise UserError(f"{other.directory} and {sets[0].directory} are examples of different models.")
    rows = rows_per_process(batch_size, process_count)
    records = [array_record_data_source.ArrayRecordDataSource([str(folder.directory / RECORDS)]) for folder in sets]
    dataset = endless(records, weights=weights, seed=seed, process_index=process_index, process_count=process_count)
    return iter(dataset.filter(bool).map(sets[0]._parse).to_iter_dataset().batch(rows))


def write_examples(
    directory: str | os.PathLike,
    examples: Iterable[Example | None],
    *,
    unconditional: np.ndarray,
    settings: Mapping[str, Any],
) -> int:
    """Write a folder of examples and return their number; `examples.json`, which makes it valid, is written last.

    Args:
      examples: None is a skipped document.

    Raises:
      UserError: there is no example.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{RECORDS}.partial"
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
    count, shapes = 0, {}
    for example in examples:
        if example is None:
            writer.write(b"")
            continue
        arrays = [np.ascontiguousarray(example[name], np.float32) for name in FIELDS]
        shapes = {name: list(array.shape) for name, array in zip(FIELDS, arrays, strict=True)}
        writer.write(b"".join(array.tobytes() for array in arrays))
        count += 1
    writer.close()
    if not count:
        partial.unlink()
        raise UserError(f"No image with a caption was found, so {directory} was not written.")
    partial.replace(directory / RECORDS)
    np.save(directory / UNCONDITIONAL, np.asarray(unconditional, np.float32))
    write_json(directory / SETTINGS, {"count": count, "shapes": shapes, **settings})
    return count
