"""Precomputed training examples of the visual decoder: Emu's embeddings of an image, and the latents of the image.

A folder holds `examples.json` (shapes and settings), `unconditional.npy` (the embeddings of the empty prompt, `[Q, D]`)
and shards, `examples.array_record-00000-of-00008` and so on. Each record is the values of `conditioning [Q D]`,
`latent_mean [h w C]` and `latent_log_variance [h w C]`, concatenated, in the dtype that `examples.json` names. A
document that was skipped (for example because its caption is too long) has an empty record, so that a run reads the
others in the order in which it would read the documents. Older folders have one file, `examples.array_record`, of
float32 values.
"""

import dataclasses
import enum
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import ml_dtypes
import numpy as np

from emu_jax.bounds import Checked, Positive
from emu_jax.data.loader.divided import DividedBatches
from emu_jax.data.loader.reading import Records
from emu_jax.errors import UserError
from emu_jax.io.files import read_json
from emu_jax.io.local_copy import local_copy

SETTINGS, UNCONDITIONAL, RECORDS = "examples.json", "unconditional.npy", "examples.array_record"
DTYPES: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
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


def endless(sources: Sequence[Any], *, weights: Sequence[float], seed: int) -> grain.MapDataset:
    """Return the endless items of all `sources`, drawn by `weights`.

    Each source is shuffled differently in every pass.

    Raises:
      UserError: no sources, or a weight that is not positive.
    """
    if not sources or not all(weight > 0 for weight in weights):
        raise UserError(f"Name at least one set of examples, each with a weight above 0, not {list(weights)}.")
    passes = [grain.MapDataset.source(source).seed(seed).shuffle().repeat() for source in sources]
    return passes[0] if len(passes) == 1 else grain.MapDataset.mix(passes, weights=list(weights))


@dataclasses.dataclass(frozen=True)
class DecoderExamples:
    """A folder of examples.

    Attributes:
      shapes: shape of each field.
      dtype: of the stored values, a key of `DTYPES`.
      shards: the files, in order.
      unconditional: embeddings of the empty prompt, float32 `[Q, D]`.
    """

    directory: Path
    shapes: dict[str, tuple[int, ...]]
    unconditional: np.ndarray
    dtype: str
    shards: tuple[Path, ...]

    @classmethod
    def open(cls, directory: str | os.PathLike) -> "DecoderExamples":
        """Open a folder. Raises UserError if it holds no examples."""
        directory = local_copy(directory)
        if not (directory / SETTINGS).is_file():
            raise UserError(f"{directory} holds no decoder examples; make them with prepare-decoder-data.")
        settings = read_json(directory / SETTINGS)
        shapes, count = settings["shapes"], settings.get("shards")
        names = [shard_name(i, count) for i in range(count)] if count else [RECORDS]
        if missing := [name for name in names if not (directory / name).is_file()]:
            raise UserError(f"{directory} lacks {len(missing)} of {len(names)} shards, such as {missing[0]}.")
        return cls(
            directory=directory,
            shapes={name: tuple(shapes[name]) for name in FIELDS},
            unconditional=np.load(directory / UNCONDITIONAL),
            dtype=settings.get("dtype", "float32"),
            shards=tuple(directory / name for name in names),
        )

    def loader(self, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1) -> DividedBatches:
        """Return endless batches `{field: float32 [rows, ...]}` of this process, resumable at any batch."""
        return load_examples(
            [self], weights=[1.0], batch_size=batch_size, seed=seed,
            process_index=process_index, process_count=process_count,
        )  # fmt: skip

    def _parse(self, record: bytes) -> dict[str, np.ndarray]:
        values = np.frombuffer(record, DTYPES[self.dtype]).astype(np.float32)
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
) -> DividedBatches:
    """Return the iterator of `DecoderExamples.loader` over several folders, drawn by `weights`.

    Raises:
      UserError: the folders have different shapes or unconditional embeddings, or the batch size does not divide among
        the processes.
    """
    for other in sets[1:]:
        if (other.shapes, other.dtype) != (sets[0].shapes, sets[0].dtype) or not np.array_equal(
            other.unconditional, sets[0].unconditional
        ):
            raise UserError(f"{other.directory} and {sets[0].directory} are examples of different models or dtypes.")
    items = endless([Records(one.shards) for one in sets], weights=weights, seed=seed).filter(bool).map(sets[0]._parse)
    return DividedBatches(items, batch_size=batch_size, process_index=process_index, process_count=process_count)


def shard_name(shard: int, count: int) -> str:
    """Return the file name of a shard."""
    return f"{RECORDS}-{shard:05d}-of-{count:05d}"
