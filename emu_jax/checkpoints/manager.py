"""Checkpoints of a run: DIR/STEP/{params, optimizer, data, config, fingerprints}, written by Orbax in the background.

Parameters, optimizer state and data state are separate items, so that parameters can be read without the others. A step
exists only when it is complete: a process that is killed while writing leaves a temporary directory, which is ignored.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from emu_jax.checkpoints.fingerprint import differing, fingerprints
from emu_jax.checkpoints.host_state import HostStateHandler, HostStateRestore, HostStateSave
from emu_jax.checkpoints.params import check_fits
from emu_jax.checkpoints.step import (
    CONFIG,
    DATA,
    FINGERPRINTS,
    OPTIMIZER,
    PARAMS,
    DamagedError,
    StepRecord,
    check_shapes,
    make_record,
    read_record,
    step_config,
    steps_in,
)
from emu_jax.errors import UserError
from emu_jax.io.paths import absolute_path
from emu_jax.waiting import barrier, first_line, lost_process, waiting


class SaveError(UserError):
    """A checkpoint could not be saved. The earlier ones are good, and the next step can be saved.

    Attributes:
      previous: True if it is that of the previous save, so that the save of this step has not started.
    """

    def __init__(self, message: str, *, previous: bool) -> None:
        super().__init__(message)
        self.previous = previous


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored checkpoint.

    Attributes:
      step: its step.
      params: tree of arrays with the requested shapes, dtypes and shardings.
      optimizer: tree of arrays with the requested shapes, dtypes and shardings.
      data: state of the data iterator of each process that saved, in order of their index.
      log: state of the metrics log, the same on every process that saved; None for an older checkpoint.
      warnings: one line for each newer step that could not be read.
      record: its checksums; None for a checkpoint from before they were added.
    """

    step: int
    params: Any
    optimizer: Any
    data: list[Any]
    warnings: tuple[str, ...]
    record: StepRecord | None = None
    log: Any = None


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self,
        directory: str | epath.Path,
        *,
        keep: int = 3,
        keep_every_steps: int | None = None,
        keep_steps: tuple[int, ...] = (),
        keep_every_hours: float | None = None,
        best_metric: str | None = None,
        keep_best: int = 1,
        best_is_lowest: bool = True,
        timeout: int = 1200,
    ) -> None:
        """Open `directory`, and create it if it does not exist.

        Args:
          directory: local path or `gs://...`.
          keep: number of the newest steps that are not deleted.
          keep_every_steps: multiples of this are never deleted.
          keep_steps: these are never deleted.
          keep_every_hours: one step per this time is never deleted.
          best_metric: the `keep_best` steps with the best value of this metric are not deleted.
          keep_best: see `best_metric`.
          best_is_lowest: see `best_metric`.
          timeout: seconds that a save in the background waits for the other processes.

        Raises:
          UserError: the directory cannot be created or written.
        """
        self.directory = absolute_path(directory)
        _check_writable(self.directory)
        preserved: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
        if keep_every_steps:
            preserved.append(policies.EveryNSteps(keep_every_steps))
        if keep_steps:
            preserved.append(policies.CustomSteps(keep_steps))
        if keep_every_hours:
            preserved.append(policies.EveryNSeconds(int(keep_every_hours * 3600)))
        if best_metric:
            value = functools.partial(_metric, name=best_metric, missing=np.inf if best_is_lowest else -np.inf)
            preserved.append(policies.BestN(get_metric_fn=value, reverse=best_is_lowest, n=keep_best))
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(preserved),
            # In the background, a folder that cannot be created ends in a timeout of minutes without a reason.
            async_options=ocp.AsyncOptions(timeout_secs=timeout, create_directories_asynchronously=False),
            cleanup_tmp_directories=True,
        )
        self._manager = self._open()
        self._is_open = True

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.directory,
            options=self._options,
            item_handlers={
                PARAMS: ocp.StandardCheckpointHandler(),
                OPTIMIZER: ocp.StandardCheckpointHandler(),
                DATA: HostStateHandler(),
                CONFIG: ocp.JsonCheckpointHandler(),
                FINGERPRINTS: ocp.JsonCheckpointHandler(),
            },
        )

    def steps(self) -> list[int]:
        """Return the complete steps, oldest first."""
        return sorted(self._manager.all_steps())

    def newest(self) -> int | None:
        """Return the newest complete step; None if there is none."""
        return max(self._manager.all_steps(), default=None)

    def save(
        self,
        step: int,
        *,
        params: Any,
        optimizer: Any,
        data: Any,
        config: dict[str, Any],
        metrics: dict[str, float] | None = None,
        log: Any = None,
    ) -> None:
        """Start to save `step`. The arrays may be donated when this returns. An existing step is not overwritten.

        Wait for the previous save first.

        Raises:
          SaveError: this or the previous save failed on a process; all processes raise it. The message has the reason
            and the newest complete step.
        """
        with waiting(f"save of step {step}"):
            self._save(step, params, optimizer, data, config, metrics, log)

    def _save(
        self, step: int, params: Any, optimizer: Any, data: Any, config: dict[str, Any], metrics: Any, log: Any
    ) -> None:
        if not _everywhere(self._is_open):
            self._reopen()
        self._guarded(self._manager.wait_until_finished, doing="finish the previous save", previous=True)
        if step in self._manager.all_steps():
            return
        config = json.loads(json.dumps(config))
        record = make_record(step, arrays=fingerprints({PARAMS: params, OPTIMIZER: optimizer}), config=config)
        self._guarded(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        PARAMS: ocp.args.StandardSave(params),
                        OPTIMIZER: ocp.args.StandardSave(optimizer),
                        DATA: HostStateSave(data, record["identity"], log),
                        CONFIG: ocp.args.JsonSave(config),
                        FINGERPRINTS: ocp.args.JsonSave(record),
                    }
                ),
                metrics=metrics,
                force=True,
            ),
            doing=f"save step {step}",
        )

    def wait(self) -> None:
        """Wait until all saves are on disk.

        Raises:
          SaveError: the save failed on a process; all processes raise it.
        """
        with waiting("end of the save"):
            self._guarded(self._manager.wait_until_finished, doing="finish saving")

    def close(self) -> None:
        """Wait for all saves and release the threads. Raise nothing: `save` and `wait` report errors."""
        if lost_process():
            return
        try:
            with waiting("end of the save"):
                self._manager.close()
        except Exception as error:
            logging.error("closing the checkpoints in %s: %s", self.directory, first_line(error))

    def restore(self, step: int, *, params: Any, optimizer: Any) -> Restored:
        """Read `step` in the shapes, dtypes and shardings of two trees of ShapeDtypeStructs.

        Raises:
          DamagedError: a part of it is not what was saved. Damage can also raise other exceptions, of Orbax.
          UserError: it is of another model or optimizer.
        """
        folder = self.directory / str(step)
        record = read_record(folder)
        step_config(folder)
        expected = {PARAMS: params, OPTIMIZER: optimizer}
        for item, tree in expected.items():
            saved = self._manager.item_metadata(step)[item]
            if saved is None:
                raise DamagedError(f"the metadata of {item} cannot be read")
            check_shapes(_by_path({item: saved}), record, item=item)
            check_fits(saved, tree, source=f"{folder / item}")
        identity = None if record is None else record.identity
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    PARAMS: ocp.args.StandardRestore(params),
                    OPTIMIZER: ocp.args.StandardRestore(optimizer),
                    DATA: HostStateRestore(identity),
                }
            ),
        )
        states = items[DATA]
        return Restored(step, items[PARAMS], items[OPTIMIZER], [one.state for one in states], (), record, states[0].log)

    def restore_newest(self, *, params: Any, optimizer: Any) -> Restored | None:
        """Read the newest readable step. Return None if there is no step.

        Newer steps that cannot be read are renamed to `unreadable-STEP`, so that training can save them again, and are
        reported in `warnings`.

        Raises:
          UserError: the checkpoint is of a different model or optimizer, or no step can be read.
        """
        with waiting("restore of the newest checkpoint"):
            return self._restore_newest(params, optimizer)

    def _restore_newest(self, params: Any, optimizer: Any) -> Restored | None:
        warnings: list[str] = []
        for step in reversed(self.steps()):
            restored: Restored | None = None
            error: Exception | None = None
            try:
                restored = self.restore(step, params=params, optimizer=optimizer)
            except Exception as failure:
                if isinstance(failure, UserError) and not isinstance(failure, DamagedError):
                    raise
                error = failure
            if _everywhere(error is None):
                assert restored is not None
                damaged = _differing(restored)
                if not damaged:
                    return dataclasses.replace(restored, warnings=tuple(warnings))
                error = DamagedError(f"{damaged[0]} differs from the saved array")
            warnings.append(f"checkpoint {step} cannot be read ({_reason(error)}); trying the previous one")
            logging.error(warnings[-1])
            self._rename_unreadable(step)
        if warnings:
            raise UserError(
                f"No checkpoint in {self.directory} can be read. They were renamed to unreadable-STEP. "
                "Start in another --workdir, or restore a readable checkpoint."
            )
        return None

    def _rename_unreadable(self, step: int) -> None:
        self._manager.close()
        if jax.process_index() == 0:
            target = self.directory / f"unreadable-{step}"
            if target.exists():
                target.rmtree()
            (self.directory / str(step)).rename(target)
        barrier(f"renaming of the unreadable step {step}")
        self._manager = self._open()

    def _guarded(self, action: Callable[[], Any], *, doing: str, previous: bool = False) -> None:
        """Call `action` on all processes. After an error on any of them, open the directory again and raise SaveError.

        Orbax lists a step as soon as its save starts. The steps that a new manager lists are complete.
        """
        error: Exception | None = None
        try:
            action()
        except Exception as failure:
            error = failure
        if _everywhere(error is None):
            return
        try:
            complete = steps_in(self.directory)
            newest = f"the last good checkpoint is step {max(complete)}" if complete else "no checkpoint is complete"
        except OSError as failure:
            newest = f"its checkpoints cannot be listed ({failure.strerror or failure})"
        self._reopen()
        raise SaveError(
            f"Could not {doing} in {self.directory} ({_reason(error)}); {newest}. "
            "Free disk space or fix the directory's permissions, then run the same command to resume.",
            previous=previous,
        ) from error

    def _reopen(self) -> None:
        """Open the directory again. If that fails, such as without the mount, the next save tries it again."""
        self._is_open = False
        with contextlib.suppress(Exception):
            self._manager.close()
        try:
            self._manager = self._open()
            self._is_open = True
        except Exception as error:
            logging.error("opening the checkpoints in %s: %s", self.directory, first_line(error))


def _metric(metrics: dict[str, float], *, name: str, missing: float) -> float:
    return metrics.get(name, missing)


def _everywhere(ok: bool) -> bool:
    """Return True if `ok` is true on every process."""
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


def _reason(error: BaseException | None) -> str:
    return "it failed on another process" if error is None else first_line(error)


def _differing(restored: Restored) -> list[str]:
    """Return the paths of the arrays that differ from the saved ones. Older checkpoints have no record to compare."""
    if restored.record is None:
        return []
    return differing(fingerprints({PARAMS: restored.params, OPTIMIZER: restored.optimizer}), restored.record.arrays)


def _by_path(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(leaf, "shape")
    }


def _check_writable(directory: epath.Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            probe = directory / ".writable"
            probe.write_text("")
            probe.unlink()
    except OSError as error:
        raise UserError(
            f"The checkpoint directory {directory} cannot be written ({error.strerror or error})."
        ) from error
