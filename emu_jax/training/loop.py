"""The training loop: one for all stages, on a laptop and on a pod.

step.py computes a step, checkpoints/ saves the state and log.py reports the metrics; this file connects them.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from emu_jax.checkpoints.manager import Checkpoints, SaveError
from emu_jax.checkpoints.params import copy_parameters, warm_start
from emu_jax.config import to_dict
from emu_jax.errors import UserError
from emu_jax.reporting.numbers import duration
from emu_jax.sharding.mesh import make_mesh
from emu_jax.training.collapse import CollapseMonitor
from emu_jax.training.compilation import compile_train_step
from emu_jax.training.config import OnFailedSave, TrainConfig
from emu_jax.training.log import Console, MetricsLog, Sink
from emu_jax.training.metrics import Accumulator, Metrics
from emu_jax.training.optimizer import make_optimizer
from emu_jax.training.partition import Tree, merge
from emu_jax.training.prefetch import Data, Prefetcher
from emu_jax.training.profile import Profiler
from emu_jax.training.signals import StopSignal
from emu_jax.training.stage import HasVocabulary, Stage
from emu_jax.training.state import TrainState, abstract_state, check_memory, create_state, describe, parameter_table
from emu_jax.training.throughput import Throughput
from emu_jax.training.weights_and_biases import WandbRun
from emu_jax.waiting import limit_waits, waiting

CHECKPOINTS = "checkpoints"
MAX_STEPS_IN_FLIGHT = 2  # steps dispatched to the device before the loop waits for the oldest


@dataclasses.dataclass(frozen=True)
class InitialParameters:
    """Parameters that a run starts with, and a line for the log that names their source."""

    params: Any
    description: str


DataFactory = Callable[[list[Any]], Data]  # from the data states of all processes that saved; [] at the start of a run
Initialize = Callable[[], InitialParameters]
Evaluation = Callable[[int, Any], dict[str, float]]  # (step, params) -> metrics, logged as "eval/NAME"


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """State at the end of a run.

    Attributes:
      params: parameters, on the run's mesh.
      ema: moving average of the trainable parameters, or None.
      step: number of steps done; less than `config.steps` if the run was stopped.
      stopped_by: "SIGTERM" or "SIGINT"; None if all steps are done.
      idle: True if all steps were done already; nothing was written.
    """

    params: Any
    ema: Any
    step: int
    stopped_by: str | None
    idle: bool = False


def train(
    config: TrainConfig,
    *,
    stage: Stage,
    data: Data | DataFactory,
    workdir: str | Path,
    checkpoints: str | Path | None = None,
    run_config: dict[str, Any] | None = None,
    initialize: Initialize | None = None,
    evaluations: Sequence[Evaluation] = (),
    sinks: Sequence[Sink] = (),
    on_start: Callable[[], None] | None = None,
    title: str | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train `stage` on `data` for `config.steps` steps, starting from the newest checkpoint of the run if there is one.

    Args:
      config: settings of the loop.
      stage: model and losses.
      data: iterator of this process's rows of each global batch; or a function that makes it from the data states of
        all processes that saved them, so that a run can resume with another number of processes.
      workdir: folder for metrics.jsonl, tensorboard/ and checkpoints/.
      checkpoints: folder for the checkpoints instead of WORKDIR/checkpoints; may be `gs://...`.
      run_config: complete configuration, saved with each checkpoint; default: `config`.
      initialize: called if there is no checkpoint; its parameters replace new ones, and take precedence over those of
        `config.warm_start`.
      evaluations: called every `config.evaluate_every` steps and at the end.
      sinks: other receivers of the metrics, on process 0.
      on_start: called after the state is restored or created, before the first step; not called if all steps are done
        already. It writes the files that describe the run.
      title: start of each progress line; default: the name of the stage.
      quiet: print nothing to the console.

    Raises:
      UserError: invalid configuration, data or folder; gradients that stay non-finite; a checkpoint that cannot be
        saved.
    """
    limit_waits(config.wait)
    mesh = make_mesh(config.mesh)
    is_main_process = jax.process_index() == 0
    manager = open_checkpoints(config, checkpoints or Path(workdir) / CHECKPOINTS)
    console = Console(title or stage.name, steps=config.steps, enabled=is_main_process and not quiet)
    try:
        with jax.set_mesh(mesh), console, StopSignal() as stop:
            state, data, log_state = _initial_state(config, stage, data, manager, mesh, console, initialize)
            step = int(state.step)
            if step >= config.steps:
                console.message(f"nothing to do: checkpoint {step} is the last of {config.steps} steps")
                return TrainResult(state.params, state.ema, step, None, idle=True)
            if on_start is not None:
                on_start()
            saved_config = run_config or to_dict(config)
            log = None
            if is_main_process:
                wandb = [WandbRun(workdir, project=config.wandb, config=saved_config)] if config.wandb else []
                log = MetricsLog(workdir, step=step, sinks=[*wandb, *sinks])
            profiler = Profiler(workdir, enabled=config.profile and is_main_process)
            loop = _Loop(config, stage, manager, console, log, stop, saved_config, evaluations, mesh, profiler)
            try:
                return loop.run(state, data, log_state)
            finally:
                if log is not None:
                    log.close()
    finally:
        manager.close()


def open_checkpoints(config: TrainConfig, directory: str | Path) -> Checkpoints:
    """Open the checkpoints in `directory` with the settings of the run."""
    settings = dataclasses.asdict(config.checkpoint)
    del settings["every_steps"], settings["on_failed_save"]
    return Checkpoints(directory, timeout=config.wait.seconds, **settings)


def _initial_state(
    config: TrainConfig,
    stage: Stage,
    data: Data | DataFactory,
    checkpoints: Checkpoints,
    mesh: Mesh,
    console: Console,
    initialize: Initialize | None,
) -> tuple[TrainState, Data, Any]:
    """Restore the newest checkpoint with its data state and its state of the log; without one, create a new state."""
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    abstract = abstract_state(stage, optimizer, config=config.optimizer, mesh=mesh)
    for line in describe(abstract, mesh=mesh):
        console.message(line)
    check_memory(abstract, stage)
    params, rest = to_items(abstract)
    restored = checkpoints.restore_newest(params=params, optimizer=rest)
    if restored is not None:
        for warning in restored.warnings:
            console.message(f"WARNING: {warning}")
        console.message(f"resuming from checkpoint {restored.step}")
        return from_items(restored.params, restored.optimizer), _data_at(data, restored.data), restored.log
    console.message(f"parameters\n{parameter_table(abstract.params)}")
    initial: Tree = {}
    if initialize is not None:
        given = initialize()
        initial = copy_parameters(given.params, abstract.params)
        console.message(given.description)
    if config.warm_start is not None:
        vocabulary: dict[str, Any] = {}
        if isinstance(stage, HasVocabulary):
            vocabulary = {"vocab_size": stage.vocab_size, "token_sources": stage.token_sources}
        loaded, report = warm_start(config.warm_start, abstract.params, **vocabulary)
        initial = merge(loaded, initial)
        console.message(f"parameters from {config.warm_start}\n{report.summary()}")
    with waiting("creation of the parameters"):
        state = create_state(stage, optimizer, config=config.optimizer, mesh=mesh, seed=config.seed, initial=initial)
        jax.block_until_ready(state)
    return state, _data_at(data, []), None


def _data_at(data: Data | DataFactory, states: list[Any]) -> Data:
    """Return the data at the position given by the states of all processes that saved; [] is the start."""
    if not isinstance(data, Data):
        return data(states)
    if len(states) == jax.process_count():
        data.set_state(states[jax.process_index()])
    elif states:
        raise UserError(
            f"The checkpoint was saved by {len(states)} processes and there are {jax.process_count()} now. This data "
            "cannot be divided among another number of processes: resume with the same number, or start another run "
            "with train.warm_start."
        )
    return data


def to_items(state: TrainState) -> tuple[Any, dict[str, Any]]:
    """Split the state into the two array items of a checkpoint: the parameters, and all other fields."""
    rest = {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "params"}
    return state.params, {name: value for name, value in rest.items() if value is not None}


def from_items(params: Any, rest: dict[str, Any]) -> TrainState:
    """Invert `to_items`."""
    return TrainState(params=params, ema=rest.get("ema"), **{k: v for k, v in rest.items() if k != "ema"})


@dataclasses.dataclass
class _Loop:
    """One call of `train`, with everything but its state."""

    config: TrainConfig
    stage: Stage
    checkpoints: Checkpoints
    console: Console
    log: MetricsLog | None
    stop: StopSignal
    run_config: dict[str, Any]
    evaluations: Sequence[Evaluation]
    mesh: Mesh
    profiler: Profiler

    def run(self, state: TrainState, data: Data, log_state: Any) -> TrainResult:
        """Do all steps that are left, or those until a signal.

        Args:
          log_state: of `_log_state`, from the checkpoint that the run resumes from; None for none.
        """
        config = self.config
        step, data_state = int(state.step), data.get_state()
        logged: dict[str, float] = {}  # metrics of the last log line
        evaluated: dict[str, float] = {}  # metrics of the evaluations after the last step
        train_step = self._compile(state)
        monitor, accumulated, in_flight = CollapseMonitor(), Accumulator(), deque[Metrics]()
        if log_state is not None:
            monitor.set_state(log_state["collapse"])
            accumulated.set_state(log_state["accumulated"])
            logged = log_state["logged"]
        # With two steps in flight, a run on eight simulated CPU devices on busy cores hung once and never again. XLA is
        # meant to support this: its CPU client runs one program with collectives at a time, one thread per device. But
        # such devices are only for tests, which gain nothing from steps in flight.
        simulated = jax.default_backend() == "cpu" and jax.local_device_count() > 1
        max_in_flight = 0 if simulated else MAX_STEPS_IN_FLIGHT
        throughput = Throughput(self.stage, steps=config.steps)
        prefetcher = Prefetcher(data, spec=self.stage.batch_spec(), mesh=self.mesh)
        try:
            while step < config.steps and not self.stop.stops_after(step):
                with throughput.waiting():
                    prefetched = next(prefetcher)
                data_state = prefetched.state
                self.profiler.before_step()
                evaluated = {}
                with waiting(f"step {step + 1}"):
                    state, metrics = train_step(state, prefetched.batch)
                    self.profiler.after_step(metrics)
                    del prefetched
                    step += 1
                    accumulated.add(metrics)
                    in_flight.append(metrics)
                    if len(in_flight) > max_in_flight:
                        self._check_finite(in_flight.popleft(), step - max_in_flight)
                    throughput.step_done(step, first_metrics=metrics)
                    reports = step % config.log_every == 0 or step == config.steps
                    if reports:
                        logged = accumulated.result()
                if reports:
                    logged |= throughput.result(step, logged)
                    self._report(step, logged, monitor)
                if config.evaluate_every and step % config.evaluate_every == 0 and step < config.steps:
                    evaluated = self._evaluate(step, state, throughput)
                if self._saves_at(step):
                    log_state = _log_state(accumulated, monitor, logged)
                    self._save_if_possible(state, data_state, logged | evaluated, log_state)
            with waiting(f"step {step}"):
                while in_flight:
                    self._check_finite(in_flight.popleft(), step - len(in_flight))
            if self.evaluations and step == config.steps:
                evaluated = self._evaluate(step, state, throughput)
            log_state = _log_state(accumulated, monitor, logged)
            self._save_if_possible(state, data_state, logged | evaluated, log_state, required=True)
            self.checkpoints.wait()
        finally:
            self.profiler.close()
            prefetcher.close()
        if step < config.steps:
            self.console.message(
                f"stopped by {self.stop.received or 'a signal to another process'} after step {step} and saved; run "
                "the same command again to resume"
            )
        else:
            self.console.message(
                f"done: {step} steps in {duration(throughput.seconds())}; {self.checkpoints.directory}/{step}"
            )
        stopped_by = None if step >= config.steps else self.stop.received or "SIGTERM"
        return TrainResult(state.params, state.ema, step, stopped_by)

    def _compile(self, state: TrainState) -> Callable[..., tuple[TrainState, Metrics]]:
        start = time.monotonic()
        compiled = compile_train_step(self.config, stage=self.stage, state=state, mesh=self.mesh)
        self.console.message(f"compiled the step in {duration(time.monotonic() - start)}")
        return compiled

    def _check_finite(self, metrics: Metrics, step: int) -> None:
        """Wait for a step in flight; raise UserError if too many gradients in a row were not finite."""
        if metrics.value("skipped_in_row") >= self.config.max_skipped_in_row:
            self.checkpoints.wait()
            newest = self.checkpoints.newest()
            saved = (
                "" if newest is None else f"The newest checkpoint is step {newest} in {self.checkpoints.directory}. "
            )
            raise UserError(
                f"The gradient was not finite in {self.config.max_skipped_in_row} steps in a row, up to step {step}. "
                f"{saved}Lower the learning rate or train.optimizer.clip_norm, or check the data of these steps."
            )

    def _report(self, step: int, metrics: dict[str, float], monitor: CollapseMonitor) -> None:
        self.console.progress(step, metrics)
        warning = monitor.check(metrics)
        if warning is not None:
            self.console.message(warning)
        if self.log is not None:
            self.log.write(step, metrics)
            if warning is not None:
                self.log.warn(step, warning)

    def _saves_at(self, step: int) -> bool:
        """Return True at the steps before the last that the config saves."""
        when = self.config.checkpoint
        periodic = when.every_steps and step % when.every_steps == 0
        return step < self.config.steps and bool(periodic or step in when.keep_steps)

    def _evaluate(self, step: int, state: TrainState, throughput: Throughput) -> dict[str, float]:
        metrics: dict[str, float] = {}
        with throughput.pause():
            for evaluation in self.evaluations:
                with waiting(f"evaluation after step {step}"):
                    metrics |= {f"eval/{name}": value for name, value in evaluation(step, state.params).items()}
        if self.log is not None and metrics:
            self.log.write(step, metrics)
        return metrics

    def _save_if_possible(
        self, state: TrainState, data_state: Any, metrics: dict[str, float], log_state: Any, *, required: bool = False
    ) -> None:
        """Save, with a second attempt if the config says to continue after a failed save.

        A step that cannot be saved is reported in one line, or raises the error if it is required.
        """
        for last in (False, True):
            try:
                return self._save(state, data_state, metrics, log_state)
            except SaveError as error:
                if self.config.checkpoint.on_failed_save is OnFailedSave.STOP or (last and required):
                    raise
                if last or error.previous:
                    self.console.message(f"WARNING: {error} The run continues (train.checkpoint.on_failed_save).")
                    if self.log is not None:
                        self.log.warn(int(state.step), str(error))

    def _save(self, state: TrainState, data_state: Any, metrics: dict[str, float], log_state: Any) -> None:
        params, rest = to_items(state)
        self.checkpoints.save(
            int(state.step),
            params=params,
            optimizer=rest,
            data=data_state,
            config=self.run_config,
            metrics=metrics,
            log=log_state,
        )


def _log_state(accumulated: Accumulator, monitor: CollapseMonitor, logged: dict[str, float]) -> dict[str, Any]:
    """Return what a resumed run needs to write the same log: sums since the last log line, and its metrics."""
    return {"accumulated": accumulated.get_state(), "collapse": monitor.get_state(), "logged": logged}
