"""From a benchmark's files and a file of predictions to scores."""

import dataclasses
import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emu_jax.bounds import Checked, Count, CountOrZero
from emu_jax.errors import UserError
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example, Key
from emu_jax.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from emu_jax.evaluation.predictions import read_predictions
from emu_jax.evaluation.results import SCORES, TaskResult, versions
from emu_jax.evaluation.task import ScoreOptions, Task
from emu_jax.io.files import write_json

log = logging.getLogger(__name__)

FRECHET_DISTANCE = "frechet_distance"


@dataclasses.dataclass(frozen=True)
class Selection(Checked):
    """The examples of a task that are evaluated.

    Attributes:
      split: None for the task's default.
      limit: the first examples only; None for all.
      max_missing: examples that may lack a prediction or readable media.
    """

    split: str | None = None
    limit: Count | None = None
    max_missing: CountOrZero = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit must be at least 1, not {self.limit}.")
        if self.max_missing < 0:
            raise UserError(f"--max-missing must be at least 0, not {self.max_missing}.")
        super().__post_init__()

    def split_of(self, task: Task) -> str:
        """Return the split of a task.

        Raises:
          UserError: the task has no such split.
        """
        split = self.split or task.splits[0]
        if split not in task.splits:
            raise UserError(f"{task.name} has the splits {', '.join(task.splits)}, not {split!r}.")
        return split


def read_examples(task: Task, root: Path, selection: Selection) -> list[Example]:
    """Return the examples of a split.

    Raises:
      UserError: files are missing or have another layout, there are no examples, or two have the same id.
    """
    split = selection.split_of(task)
    examples = task.read(DataRoot(root, task.name), split)
    if not examples:
        raise UserError(f"{root / task.name} has no examples of the split {split}.")
    if len({example.key for example in examples}) < len(examples):
        raise UserError(f"The annotations in {root / task.name} list an id twice; download them again.")
    return examples[: selection.limit]


def score_file(task: Task, root: Path, predictions: Path, *, selection: Selection, options: ScoreOptions) -> TaskResult:
    """Score a file of predictions without a model.

    Raises:
      UserError: bad annotations or predictions, or more examples without a prediction than `selection` allows.
    """
    examples = read_examples(task, root, selection)
    found = read_predictions(predictions, task, examples)
    missing = {example.key: "no prediction" for example in examples if example.key not in found}
    settings = {"predictions": str(predictions)}
    options = dataclasses.replace(options, folder=predictions.parent)
    return score_predictions(task, examples, found, missing, selection=selection, options=options, settings=settings)


def score_features(path: Path, folder: Path) -> float:
    """Return the Frechet distance of the arrays `real` and `generated` of an .npz file; write FOLDER/scores.json.

    Raises:
      UserError: the file does not hold two such arrays.
    """
    try:
        with np.load(path) as arrays:
            real, generated = arrays["real"], arrays["generated"]
    except (OSError, KeyError, ValueError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} does not hold arrays `real` and `generated` of features ({error}).") from None
    distance = frechet_distance(FeatureStatistics.of(real), FeatureStatistics.of(generated))
    scores = {FRECHET_DISTANCE: distance}
    write_json(
        folder / SCORES, {"task": FRECHET_DISTANCE, "scores": scores, "official": scores, "versions": versions()}
    )
    return distance


def score_predictions(
    task: Task,
    examples: Sequence[Example],
    predictions: Mapping[Key, Any],
    missing: Mapping[Key, str],
    *,
    selection: Selection,
    options: ScoreOptions,
    settings: Mapping[str, Any],
) -> TaskResult:
    """Score predictions of `examples`; those in `missing` count in no score.

    Raises:
      UserError: too many are missing, or all.
    """
    check_missing(task, missing, total=len(examples), max_missing=selection.max_missing)
    rows = [example for example in examples if example.key in predictions]
    values = [predictions[example.key] for example in rows]
    annotated = task.makes_images or all(example.references for example in rows)
    scored = task.metric(rows, values, options) if task.metric is not None and annotated else None
    return TaskResult(
        task,
        selection.split_of(task),
        rows,
        values,
        len(examples),
        {" ".join(map(str, key)): reason for key, reason in missing.items()},
        scored,
        settings,
    )


def check_missing(task: Task, missing: Mapping[Key, str], *, total: int, max_missing: int) -> None:
    """Raise UserError if more examples are missing than allowed, or all of them; warn about fewer."""
    if not missing:
        return
    first = "; ".join(f"{' '.join(map(str, key))}: {reason}" for key, reason in list(missing.items())[:3])
    said = f"{len(missing)} of {total} examples of {task.name} are missing ({first}{'; ...' * (len(missing) > 3)})"
    if len(missing) > max_missing or len(missing) == total:
        raise UserError(
            f"{said}. Complete the data, or score the others with --max-missing {len(missing)}."
            if len(missing) < total
            else f"{said}. Check --data."
        )
    log.warning("%s; the scores are over the other %d.", said, total - len(missing))
