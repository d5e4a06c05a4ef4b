"""Examples for the visual decoder, computed once: what Emu's embeddings of a picture are, and the picture's latents.

A folder holds `examples.json` (shapes and where they come from), `unconditional.npy` (the embeddings of the empty
prompt, `[Q, D]`) and `examples.array_record`: of each example the float32 values of `conditioning [Q D]`,
`latent_mean [h w C]` and `latent_log_variance [h w C]`, one after the other. A document that was left out (its caption
is too long, for one) has an empty record: so a run reads the others in the order in which it would read the documents.
"""

import dataclasses
import enum
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python import array_record_data_source, array_record_module

from emu_jax.errors import UserError

SETTINGS, UNCONDITIONAL, RECORDS = "examples.json", "unconditional.npy", "examples.array_record"
FIELDS = ("conditioning", "latent_mean", "latent_log_variance")

Example = Mapping[str, np.ndarray]


class Condition(enum.Enum):
    """What the U-Net sees of a picture."""

    PREDICTED = "predicted"  # what Emu generates from its caption (the paper)
    ENCODED = "encoded"  # what the encoder makes of the picture itself (Emu2's autoencoding)


@dataclasses.dataclass(frozen=True)
class WeightedSet:
    """A folder, and the share of examples drawn from it beside others."""

    path: str
    weight: float = 1.0


def endless(
    sources: Sequence[Any], *, weights: Sequence[float], seed: int, process_index: int, process_count: int
) -> grain.MapDataset:
    """This process's items of all `sources`, each shuffled anew every pass, drawn by `weights`, for ever.

    Raises:
      UserError: no sources, or a weight that is not positive.
    """
    if not sources or not all(weight > 0 for weight in weights):
        raise UserError(f"Sets of examples must be named, each with a weight above 0, not {list(weights)}.")
    passes = [grain.MapDataset.source(source).seed(seed).shuffle().repeat() for source in sources]
    mixed = passes[0] if len(passes) == 1 else grain.MapDataset.mix(passes, weights=list(weights))
    return mixed[process_index::process_count]


def rows_of_process(batch_size: int, process_count: int) -> int:
    """Raises UserError where a global batch does not divide among the processes."""
    if batch_size % process_count:
        raise UserError(f"A batch of {batch_size} examples does not divide among {process_count} processes.")
    return batch_size // process_count


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
    """`DecoderExamples.loader` of several folders, drawn by `weights`.

    Raises:
      UserError: their shapes or their unconditional embeddings differ, or the batch does not divide.
    """
    for one in sets[1:]:
        if one.shapes != sets[0].shapes or not np.array_equal(one.unconditional, sets[0].unconditional):
            raise UserError(f"{one.directory} and {sets[0].directory} are examples of different models.")
    rows = rows_of_process(batch_size, process_count)
    records = [array_record_data_source.ArrayRecordDataSource([str(one.directory / RECORDS)]) for one in sets]
    dataset = endless(records, weights=weights, seed=seed, process_index=process_index, process_count=process_count)
    return iter(dataset.filter(bool).map(sets[0]._parse).to_iter_dataset().batch(rows))


def write_examples(
    directory: str | os.PathLike,
    examples: Iterable[Example | None],
    *,
    unconditional: np.ndarray,
    settings: Mapping[str, Any],
) -> int:
    """Writes a folder of examples and counts them; `examples.json` last, without which it is none.

    None stands for a document that was left out.

    Raises:
      UserError: there was not one example.
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
        raise UserError(f"No picture with a caption was found, so {directory} was not written.")
    partial.replace(directory / RECORDS)
    np.save(directory / UNCONDITIONAL, np.asarray(unconditional, np.float32))
    written = directory / f".{SETTINGS}.partial"
    written.write_text(json.dumps({"count": count, "shapes": shapes, **settings}, indent=2) + "\n")
    written.replace(directory / SETTINGS)
    return count
