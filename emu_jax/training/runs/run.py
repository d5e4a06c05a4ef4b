"""A run that is ready to be trained, and what all stages share in making one."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from emu_jax.checkpoints.model_directory import carry_unused
from emu_jax.config import to_dict
from emu_jax.data.loader.divided import DividedBatches
from emu_jax.io.files import atomic_file, file_errors, write_json
from emu_jax.training.config import TrainConfig
from emu_jax.training.loop import DataFactory, Evaluation, Initialize, TrainResult
from emu_jax.training.prefetch import Data
from emu_jax.training.stage import Stage
from emu_jax.waiting import waiting


@dataclasses.dataclass(frozen=True)
class Run:
    """Arguments of `training.loop.train`, and what happens before and after it.

    Attributes:
      config: complete configuration, saved with the checkpoints.
      train: settings of the loop.
      stage: model and losses.
      data: makes the data at the start of the run, or from the states of a checkpoint.
      tokenizer: SentencePiece model to copy into the workdir; None for a stage without text.
      initialize: returns the initial parameters; None for new ones.
      evaluations: losses on held-out sets; `config.evaluation` lists benchmarks too, which the command adds.
      finish: called with the workdir and the result when all steps are done; writes the input of the next stage.
    """

    config: Any
    train: TrainConfig
    stage: Stage
    data: DataFactory
    tokenizer: Path | None = None
    initialize: Initialize | None = None
    evaluations: Sequence[Evaluation] = ()
    finish: Callable[[Path, TrainResult], None] = lambda workdir, result: None

    def write_config(self, workdir: Path) -> None:
        """Write WORKDIR/config.json and WORKDIR/tokenizer.model, and copy the unused weights of the warm start.

        Raises:
          UserError: the workdir cannot be written.
        """
        if jax.process_index() != 0:
            return
        write_json(workdir / "config.json", to_dict(self.config), indent=2)
        target = workdir / "tokenizer.model"
        with file_errors("write", target):
            if self.tokenizer is not None and not (target.exists() and target.samefile(self.tokenizer)):
                with atomic_file(target) as temporary:
                    shutil.copyfile(self.tokenizer, temporary)
            if self.train.warm_start is not None:
                carry_unused(self.train.warm_start, workdir)


def data_factory(load: Callable[..., DividedBatches]) -> DataFactory:
    """Return a factory of data that can resume with another number of processes.

    Args:
      load: makes the data of one process, from the keywords `process_index` and `process_count`.
    """

    def make(states: list[Any]) -> Data:
        data = load(process_index=jax.process_index(), process_count=jax.process_count())
        if states:
            data.set_states(states)
        return data

    return make


def trained_part(result: TrainResult, part: str) -> Any:
    """Return the trained parameters of a part as host arrays: their moving average if there is one.

    On several processes, one program replicates the shards; all processes must call it.
    """
    params = (result.params if result.ema is None else result.ema)[part]
    if jax.process_count() > 1:
        mesh = jax.tree.leaves(params)[0].sharding.mesh
        with waiting("collection of the parameters"):
            params = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(params)
            jax.block_until_ready(params)
    return jax.device_get(params)
