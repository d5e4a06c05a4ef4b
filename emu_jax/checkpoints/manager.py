"""Checkpoints of a run: DIR/STEP/{params, optimizer, data, config, fingerprints}, written by Orbax in the background.

Parameters, optimizer state and data state are separate items, so that parameters alone can be read. A step is there
only once it is complete: a process killed while writing leaves a temporary directory, which is ignored.
"""

import dataclasses
import functools
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
from emu_jax.errors import UserError

PARAMS, OPTIMIZER, DATA, CONFIG, FINGERPRINTS = "params", "optimizer", "data", "config", "fingerprints"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back.

    Attributes:
      step: its step.
      params: tree of arrays as asked for.
      optimizer: tree of arrays as asked for.
      data: what the data iterator of each process gave, in the order of the processes that saved.
      warnings: newer steps that could not be read, one line each.
    """

    step: int
    params: Any
    optimizer: Any
    data: list[Any]
    warnings: tuple[str, ...]


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
        asynchronous: bool = True,
    ) -> None:
        """Opens or makes `directory`.

        Args:
          directory: local path or `gs://...`.
          keep: so many of the newest steps stay.
          keep_every_steps: multiples of this stay for good.
          keep_steps: these stay for good.
          keep_every_hours: one step in so many hours stays for good.
          best_metric: the `keep_best` steps with the best value of this metric stay as well.
          keep_best: see `best_metric`.
          best_is_lowest: see `best_metric`.
          asynchronous: `save` returns once the arrays are copied to the host.

        Raises:
          UserError: the directory cannot be made or written.
        """
        self.directory = epath.Path(directory).absolute()
        _check_writable(self.directory)
        kept: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
        if keep_every_steps:
            kept.append(policies.EveryNSteps(keep_every_steps))
        if keep_steps:
            kept.append(policies.CustomSteps(keep_steps))
        if keep_every_hours:
            kept.append(policies.EveryNSeconds(int(keep_every_hours * 3600)))
        if best_metric:
            value = functools.partial(_metric, name=best_metric, missing=np.inf if best_is_lowest else -np.inf)
            kept.append(policies.BestN(get_metric_fn=value, reverse=best_is_lowest, n=keep_best))
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            enable_async_checkpointing=asynchronous,
            # In the background a folder that cannot be made is found out by a time limit of minutes, and not said why.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            cleanup_tmp_directories=True,
        )
        self._manager = self._open()

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
        """The complete steps, oldest first."""
        return sorted(self._manager.all_steps())

    def newest(self) -> int | None:
        """The newest complete step."""
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
    ) -> None:
        """Begins to save `step`; the arrays may be donated as soon as this returns. A step already there is left.

        Raises:
          UserError: this or an earlier save failed, with the reason and the newest step that is complete.
        """
        if step in self._manager.all_steps():
            return
        self._guarded(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        PARAMS: ocp.args.StandardSave(params),
                        OPTIMIZER: ocp.args.StandardSave(optimizer),
                        DATA: HostStateSave(data),
                        CONFIG: ocp.args.JsonSave(config),
                        FINGERPRINTS: ocp.args.JsonSave(fingerprints({PARAMS: params, OPTIMIZER: optimizer})),
                    }
                ),
                metrics=metrics,
                force=True,
            ),
            doing=f"save step {step}",
        )

    def wait(self) -> None:
        """Returns when all that was begun is on disk.

        Raises:
          UserError: a save failed.
        """
        self._guarded(self._manager.wait_until_finished, doing="finish saving")

    def close(self) -> None:
        """Waits for what was begun, then lets go of threads. Raises nothing: `save` and `wait` tell of errors."""
        try:
            self._manager.close()
        except Exception as error:
            logging.error("closing the checkpoints in %s: %s", self.directory, _first_line(error))

    def restore(self, step: int, *, params: Any, optimizer: Any) -> Restored:
        """Reads `step` onto the shapes, dtypes and shardings of the two trees of ShapeDtypeStructs."""
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    PARAMS: ocp.args.StandardRestore(params),
                    OPTIMIZER: ocp.args.StandardRestore(optimizer),
                    DATA: HostStateRestore(),
                }
            ),
        )
        return Restored(step, items[PARAMS], items[OPTIMIZER], items[DATA], ())

    def restore_newest(self, *, params: Any, optimizer: Any) -> Restored | None:
        """Reads the newest step that can be read, or gives None when there is none at all.

        A newer step that cannot be read is renamed to `unreadable-STEP` (so that training may save that step again)
        and reported in `warnings`.

        Raises:
          UserError: the checkpoint is of another model or optimizer, or no step can be read.
        """
        warnings: list[str] = []
        for step in reversed(self.steps()):
            try:
                for name, wanted in ((PARAMS, params), (OPTIMIZER, optimizer)):
                    saved = self._manager.item_metadata(step)[name]
                    check_fits(saved, wanted, source=f"{self.directory / str(step) / name}")
                restored, error = self.restore(step, params=params, optimizer=optimizer), None
            except UserError:
                raise
            except Exception as failure:
                restored, error = None, failure
            if _everywhere(error is None):
                assert restored is not None
                damaged = self._damaged(restored)
                if not damaged:
                    return dataclasses.replace(restored, warnings=tuple(warnings))
                error = ValueError(f"{damaged[0]} is not what was saved")
            warnings.append(f"checkpoint {step} cannot be read ({_first_line(error)}); going back to the one before")
            logging.error(warnings[-1])
            self._put_aside(step)
        if warnings:
            raise UserError(
                f"No checkpoint in {self.directory} can be read; the unreadable ones were renamed. "
                "Start again in another --workdir, or put back a good one."
            )
        return None

    def _damaged(self, restored: Restored) -> list[str]:
        """Paths of the arrays that are not those that were saved."""
        if not (self.directory / str(restored.step) / FINGERPRINTS).exists():  # older than they are
            return []
        item = ocp.args.Composite(**{FINGERPRINTS: ocp.args.JsonRestore()})
        saved = self._manager.restore(restored.step, args=item)[FINGERPRINTS]
        return differing(fingerprints({PARAMS: restored.params, OPTIMIZER: restored.optimizer}), saved)

    def _put_aside(self, step: int) -> None:
        self._manager.close()
        if jax.process_index() == 0:
            target = self.directory / f"unreadable-{step}"
            if target.exists():
                target.rmtree()
            (self.directory / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("emu_jax_put_aside")
        self._manager = self._open()

    def _guarded(self, action: Callable[[], Any], *, doing: str) -> None:
        try:
            action()
        except Exception as error:
            complete = _complete_steps(self.directory)
            good = f"the last good checkpoint is step {max(complete)}" if complete else "no checkpoint is complete"
            raise UserError(
                f"Could not {doing} in {self.directory} ({_first_line(error)}); {good}. "
                "Make room or mend the directory's rights, then give the same command to go on."
            ) from error


def _metric(metrics: dict[str, float], *, name: str, missing: float) -> float:
    return metrics.get(name, missing)


def _everywhere(ok: bool) -> bool:
    """Whether `ok` holds on every process."""
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


def _first_line(error: BaseException | None) -> str:
    if error is None:
        return "another process could not read it"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def _complete_steps(directory: epath.Path) -> list[int]:
    return [int(path.name) for path in directory.iterdir() if path.name.isdigit()] if directory.exists() else []


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
