"""Benchmarks as evaluations of a training run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import UserError
from emu_jax.evaluation.api import evaluate
from emu_jax.evaluation.catalog import find_task
from emu_jax.evaluation.results import flat_scores
from emu_jax.evaluation.runner import MAX_SKEW_SECONDS
from emu_jax.evaluation.scoring import Selection, read_examples
from emu_jax.evaluation.task import ScoreOptions, check_text
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.models.config import EmuConfig
from emu_jax.waiting import barrier, waiting


@dataclasses.dataclass(frozen=True)
class TaskEvaluation:
    """An evaluation for `training.loop.train`: the scores of a benchmark, in the units that papers print.

    Attributes:
      task: its name.
      data: folder that holds the task's folder.
      config, tokenizer, mesh: of the model in training.
      selection: split and limit.
      shots: few-shot examples by RICES.
    """

    task: str
    data: Path
    config: EmuConfig
    tokenizer: Tokenizer
    mesh: Mesh
    selection: Selection
    shots: int = 0
    batch_size: int = 16

    def check(self) -> None:
        """Raise UserError if the task, its files or the programs that score it do not allow the evaluation."""
        task = find_task(self.task)
        if task.makes_images:
            raise UserError(f"evaluation.tasks: {self.task} requires a visual decoder; evaluate checkpoints with it.")
        examples = read_examples(task, self.data, self.selection)
        if task.check is check_text and task.metric is not None and examples[0].references:
            task.metric(examples[:1], [examples[0].references[0]], ScoreOptions())

    def __call__(self, step: int, params: Any) -> dict[str, float]:
        """Return TASK/SCORE for each score, the same on every process."""
        del step
        emu = EmuPipeline(self.config, params, tokenizer=self.tokenizer, mesh=self.mesh)
        with waiting(f"benchmark {self.task}", seconds=MAX_SKEW_SECONDS):  # longer than the steps of a run
            result = evaluate(
                emu,
                self.task,
                self.data,
                split=self.selection.split,
                limit=self.selection.limit,
                shots=self.shots,
                batch_size=self.batch_size,
            )
            scores = {} if result is None or result.scored is None else flat_scores(result.scored.scores)
            return _from_first_process({f"{self.task}/{name}": score.printed for name, score in scores.items()})


def _from_first_process(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics of the first process, the only one that computes scores."""
    if jax.process_count() == 1:
        return metrics
    barrier("scores of the first process", seconds=MAX_SKEW_SECONDS)
    text = np.frombuffer(json.dumps(metrics).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    found = multihost_utils.broadcast_one_to_all(np.resize(text, size))  # all processes send arrays of one size
    return json.loads(np.asarray(found, np.uint8).tobytes())
