"""The definition of a task: its files, how examples become predictions, and how predictions are scored."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.grader import Grader
from emu_jax.evaluation.image_metrics.networks import ImageNetworks
from emu_jax.evaluation.metrics.scores import Scored
from emu_jax.evaluation.metrics.vqa import VqaProtocol
from emu_jax.evaluation.prompts import Shot
from emu_jax.generation.pipeline import EmuPipeline


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """Choices that change a score.

    Attributes:
      vqa_protocol: see `metrics.vqa`.
      grader: grades the answers of MM-Vet; None leaves MM-Vet unscored.
      networks: score generated images; without them images are only generated.
      folder: OUT/TASK, which predictions that are files are named from.
    """

    vqa_protocol: VqaProtocol = VqaProtocol.RELEASE
    grader: Grader | None = None
    networks: ImageNetworks = dataclasses.field(default_factory=ImageNetworks)
    folder: Path = Path()


@dataclasses.dataclass(frozen=True)
class BatchContext:
    """Inputs of a predictor besides the examples.

    Attributes:
      seed: differs from batch to batch, and is the same after a resume.
      folder: OUT/TASK, for predictions that are files.
    """

    seed: int
    folder: Path


class Predictor(Protocol):
    """Turn examples into predictions with a model."""

    def describe(self) -> Mapping[str, Any]:
        """Return the prompt and the generation options, for scores.json."""

    def length(self, emu: EmuPipeline, example: Example, shots: Sequence[Shot]) -> int:
        """Return the number of prompt tokens; examples of similar length share a batch."""

    def prepare(self, emu: EmuPipeline, example: Example, shots: Sequence[Shot]) -> Any:
        """Read media and build the prompt. Called in a thread.

        Raises:
          UserError: an image or video cannot be read.
        """

    def predict(self, emu: EmuPipeline, prepared: Sequence[Any], *, context: BatchContext) -> list[Any]:
        """Return the prediction of each prepared example."""


# Returns None if a score requires something that the options do not give, such as a grader.
Metric = Callable[[Sequence[Example], Sequence[Any], ScoreOptions], Scored | None]


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
      name: on the command line, and of the folders ROOT/NAME and OUT/NAME.
      title: for reports.
      files: paths under ROOT and what they are, for `--list`.
      splits: known splits, the default first.
      source: where prompt, options and metric come from.
      read: the examples of a split.
      key_fields: fields of a line of predictions.jsonl that identify an example.
      value_field: field that holds the prediction.
      check: raise ValueError if a value read from a file is not a prediction.
      predictor: makes predictions with a model; None for a task that only scores given files.
      metric: scores predictions of a split with annotations; None where only the benchmark's own code can.
      headline: the score that papers print.
      server_file: name and content of the file that the benchmark's server or scorer takes.
      training_split: split that few-shot examples come from; None: the task has no few-shot setting.
      makes_images: the predictor requires a visual decoder.
    """

    name: str
    title: str
    files: Mapping[str, str]
    splits: tuple[str, ...]
    source: str
    read: Callable[[DataRoot, str], list[Example]]
    key_fields: tuple[str, ...]
    value_field: str
    check: Callable[[Any, Example], None]
    predictor: Predictor | None
    metric: Metric | None
    headline: str
    server_file: tuple[str, Callable[[Sequence[Example], Sequence[Any]], Any]] | None = None
    training_split: str | None = None
    makes_images: bool = False


def check_text(value: Any, example: Example) -> None:
    """Raise ValueError unless a prediction is a string."""
    del example
    if not isinstance(value, str):
        raise ValueError(f"is {value!r}, not a text")


def rows_for_server(
    key_fields: Sequence[str], value_field: str
) -> Callable[[Sequence[Example], Sequence[Any]], list[dict[str, Any]]]:
    """Return a function that lists predictions as `[{KEY: ..., VALUE: ...}, ...]`."""

    def rows(examples: Sequence[Example], values: Sequence[Any]) -> list[dict[str, Any]]:
        return [
            dict(zip(key_fields, example.key, strict=True)) | {value_field: value}
            for example, value in zip(examples, values, strict=True)
        ]

    return rows
