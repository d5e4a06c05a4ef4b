"""Evaluations of a run: losses on fixed held-out batches, and the config of benchmark tasks."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from emu_jax.bounds import Checked, Count, CountOrZero
from emu_jax.errors import UserError
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.training.prefetch import Data, batch_shardings
from emu_jax.training.stage import Batch, Stage


@dataclasses.dataclass(frozen=True)
class HeldOutSet:
    """A set that is not trained on: a folder like those that the stage trains on.

    Attributes:
      path: the folder.
      name: in metrics; empty means the path.
      split: of a prepared folder.
    """

    path: str
    name: str = ""
    split: str = "train"


@dataclasses.dataclass(frozen=True)
class TaskConfig(Checked):
    """A benchmark of `python -m emu_jax evaluate --list`.

    Attributes:
      name: of the task.
      limit: number of examples, the first ones; None for all.
      split: None for the task's default.
      shots: few-shot examples by RICES.
    """

    name: str
    limit: Count | None = None
    split: str | None = None
    shots: CountOrZero = 0


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Checked):
    """Evaluations every `train.evaluate_every` steps and at the end; metrics are named eval/NAME/METRIC.

    Attributes:
      sets: held-out sets, for one loss per set and loss term.
      batches: batches per set, read once at the start.
      tasks: benchmarks, for stages of an Emu.
      data: folder that holds a folder per task.
      batch_size: prompts per program of the benchmarks.
    """

    sets: tuple[HeldOutSet, ...] = ()
    batches: Count = 4
    tasks: tuple[TaskConfig, ...] = ()
    data: str = ""
    batch_size: Count = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tasks and not self.data:
            raise UserError("evaluation.tasks require evaluation.data, the folder that holds a folder per task.")

    def check_no_tasks(self, stage: str) -> None:
        """Raise UserError if there are benchmarks, which only stages of an Emu can run."""
        if self.tasks:
            raise UserError(f"The stage {stage} has no Emu for evaluation.tasks; set evaluation.sets only.")


class HeldOutLosses:
    """An evaluation for `training.loop.train`: the mean of each loss term on fixed batches of each set."""

    def __init__(self, stage: Stage, batches: Mapping[str, Sequence[Mapping[str, np.ndarray]]], *, mesh: MeshConfig):
        """Take the batches of this process by set name."""
        self._stage, self._batches, self._mesh = stage, batches, mesh
        self._placed: dict[str, list[Batch]] = {}
        self._sums = jax.jit(self._loss_sums)

    def __call__(self, step: int, params: Any) -> dict[str, float]:
        """Return NAME/TERM for each loss term, and the weighted total NAME/loss."""
        del step
        metrics: dict[str, float] = {}
        for name, batches in self._on_devices().items():
            keys = jax.random.split(jax.random.key(0), len(batches))  # the same noise in each evaluation
            # One program at a time: many with collectives in flight can deadlock between processes.
            pairs = [jax.device_get(self._sums(params, batch, key)) for batch, key in zip(batches, keys, strict=True)]
            sums, counts = jax.tree.map(lambda *values: sum(values), *pairs)
            means = {term: float(sums[term]) / float(counts[term]) for term in sums if counts[term]}
            weights = self._stage.loss_weights
            metrics |= {f"{name}/{term}": mean for term, mean in means.items()}
            metrics[f"{name}/loss"] = sum(weights[term] * mean for term, mean in means.items())
        return metrics

    def _loss_sums(self, params: Any, batch: Batch, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        sums = self._stage.losses(params, batch, key, deterministic=True).sums
        return sums, self._stage.loss_denominators(batch)

    def _on_devices(self) -> dict[str, list[Batch]]:
        if not self._placed:
            spec = self._stage.batch_spec()
            shardings = batch_shardings(spec, mesh=make_mesh(self._mesh))
            for name, batches in self._batches.items():
                self._placed[name] = [
                    {
                        field: jax.make_array_from_process_local_data(shardings[field], batch[field], spec[field].shape)
                        for field in spec
                    }
                    for batch in batches
                ]
        return self._placed


def held_out_losses(
    config: EvaluationConfig, stage: Stage, load: Callable[[HeldOutSet], Data], *, mesh: MeshConfig
) -> list[HeldOutLosses]:
    """Return the evaluation of the held-out sets; none without sets.

    Args:
      load: makes the data of this process from one set.

    Raises:
      UserError: a set is missing or too small, or two sets have the same name.
    """
    if not config.sets:
        return []
    names = [one.name or one.path for one in config.sets]
    if len(set(names)) < len(names):
        raise UserError(f"evaluation.sets has the same name twice: {', '.join(names)}.")
    batches = {}
    for name, one in zip(names, config.sets, strict=True):
        data = load(one)
        try:
            batches[name] = [dict(next(data)) for _ in range(config.batches)]
        except StopIteration:
            raise UserError(f"{one.path} has fewer than evaluation.batches={config.batches} batches.") from None
    return [HeldOutLosses(stage, batches, mesh=mesh)]
