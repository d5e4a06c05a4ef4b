"""The benchmarks of a training run, from `config.evaluation.tasks`."""

from __future__ import annotations

from pathlib import Path

from emu_jax.data.tokenizer import Tokenizer
from emu_jax.evaluation.in_training import TaskEvaluation
from emu_jax.evaluation.scoring import Selection
from emu_jax.sharding.mesh import make_mesh
from emu_jax.training.runs.emu import EmuRunConfig
from emu_jax.training.runs.run import Run


def task_evaluations(run: Run) -> list[TaskEvaluation]:
    """Return one evaluation per benchmark; none for stages without an Emu.

    Raises:
      UserError: a task is unknown, or its files are missing.
    """
    config = run.config
    if not isinstance(config, EmuRunConfig) or not config.evaluation.tasks:
        return []
    tokenizer = Tokenizer.load(config.tokenizer, instruct=config.instruct)
    evaluations = [
        TaskEvaluation(
            task=one.name,
            data=Path(config.evaluation.data),
            config=config.model,
            tokenizer=tokenizer,
            mesh=make_mesh(config.train.mesh),
            selection=Selection(one.split, one.limit),
            shots=one.shots,
            batch_size=config.evaluation.batch_size,
        )
        for one in config.evaluation.tasks
    ]
    for evaluation in evaluations:
        evaluation.check()
    return evaluations
