"""Benchmarks as evaluations of a training run."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import UserError
from emu_jax.evaluation.api import evaluate
from emu_jax.evaluation.catalog import find_task
from emu_jax.evaluation.results import flat_scores
from emu_jax.evaluation.scoring import Selection, read_examples
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.models.config import EmuConfig


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
        """Raise UserError if the task, its files, or this number of processes does not allow the evaluation."""
        task = find_task(self.task)
        if task.makes_images:
            raise UserError(f"evaluation.tasks: {self.task} requires a visual decoder; evaluate checkpoints with it.")
        if jax.process_count() > 1:
            raise UserError(
                "evaluation.tasks run on one process; on several, set evaluation.sets and evaluate checkpoints with "
                "`python -m emu_jax evaluate`."
            )
        read_examples(task, self.data, self.selection)

    def __call__(self, step: int, params: Any) -> dict[str, float]:
        """Return TASK/SCORE for each score."""
        del step
        emu = EmuPipeline(self.config, params, tokenizer=self.tokenizer, mesh=self.mesh)
        result = evaluate(
            emu,
            self.task,
            self.data,
            split=self.selection.split,
            limit=self.selection.limit,
            shots=self.shots,
            batch_size=self.batch_size,
        )
        assert result is not None
        if result.scored is None:
            return {}
        scores = flat_scores(result.scored.scores)
        return {f"{self.task}/{name}": score.printed for name, score in scores.items()}
