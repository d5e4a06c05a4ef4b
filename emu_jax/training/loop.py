"""The one training loop: for every stage, on a laptop and on a pod.

What a step does is in step.py, what is saved in checkpoints/, what is shown in log.py; here they are put together.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from emu_jax.checkpoints.manager import Checkpoints
from emu_jax.checkpoints.params import place_parameters, warm_start
from emu_jax.config import to_dict
from emu_jax.errors import UserError
from emu_jax.sharding.mesh import make_mesh
from emu_jax.training.collapse import CollapseWatch
from emu_jax.training.compilation import compile_train_step
from emu_jax.training.config import TrainConfig
from emu_jax.training.log import Console, MetricsLog, Sink, duration
from emu_jax.training.metrics import Accumulator, Metrics
from emu_jax.training.optimizer import make_optimizer
from emu_jax.training.partition import Tree, merge
from emu_jax.training.prefetch import Data, Prefetcher
from emu_jax.training.profile import Profiler
from emu_jax.training.signals import StopSignal
from emu_jax.training.stage import ReadsText, Stage
from emu_jax.training.state import TrainState, abstract_state, create_state, describe
from emu_jax.training.throughput import Throughput
from emu_jax.training.weights_and_biases import WandbRun

CHECKPOINTS = "checkpoints"

DataFactory = Callable[[list[Any]], Data]
Start = Callable[[], tuple[Any, str]]  # -> (parameters, or some parts of them; where they are from)
Evaluation = Callable[[int, Any], dict[str, float]]  # (step, params) -> metrics, logged under "eval/"


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
      params: the parameters, on the run's mesh.
      ema: the moving average of the trainable ones, or None.
      step: the step they are of; below `config.steps` when the run was stopped.
      stopped_by: "SIGTERM" or "SIGINT", or None when the run came to its end.
    """

    params: Any
    ema: Any
    step: int
    stopped_by: str | None


def train(
    config: TrainConfig,
    *,
    stage: Stage,
    data: Data | DataFactory,
    workdir: str | Path,
    checkpoints: str | Path | None = None,
    run_config: dict[str, Any] | None = None,
    start: Start | None = None,
    evaluations: Sequence[Evaluation] = (),
    sinks: Sequence[Sink] = (),
    title: str | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Trains `stage` on `data` up to `config.steps`, from the newest checkpoint in `workdir` where there is one.

    Args:
      config: of the run.
      stage: what is trained.
      data: iterator of this process's rows of each global batch; or a function that makes it from the data states of
        all processes that saved (none at the start of a run), which can go on with another number of processes.
      workdir: takes metrics.jsonl, tensorboard/ and checkpoints/.
      checkpoints: takes the checkpoints instead of WORKDIR/checkpoints; may be `gs://...`.
      run_config: the whole configuration, kept with every checkpoint; default: `config`.
      start: called where there is no checkpoint; its parameters take the place of new ones (before `warm_start`).
      evaluations: called every `config.evaluate_every` steps and at the end.
      sinks: take the metrics besides the log, on process 0.
      title: begins the progress line; default: the stage's name.
      quiet: nothing on the console.

    Raises:
      UserError: bad configuration, data or directory; a gradient that stays non-finite; a failed save.
    """
    mesh = make_mesh(config.mesh)
    lead = jax.process_index() == 0
    opened = open_checkpoints(config, checkpoints or Path(workdir) / CHECKPOINTS)
    console = Console(title or stage.name, steps=config.steps, enabled=lead and not quiet)
    try:
        with jax.set_mesh(mesh), console, StopSignal() as stop:
            state, data = _start(config, stage, data, opened, mesh, console, start)
            kept = run_config or to_dict(config)
            wandb = [WandbRun(workdir, project=config.wandb, config=kept)] if config.wandb and lead else []
            log = MetricsLog(workdir, step=int(state.step), sinks=[*wandb, *sinks]) if lead else None
            profiler = Profiler(workdir, enabled=config.profile and lead)
            run = _Run(config, stage, opened, console, log, stop, kept, evaluations, mesh, profiler)
            try:
                return run.steps(state, data)
            finally:
                if log is not None:
                    log.close()
    finally:
        opened.close()


def open_checkpoints(config: TrainConfig, directory: str | Path) -> Checkpoints:
    """The checkpoints in `directory`, under the habits of the run's config."""
    habits = dataclasses.asdict(config.checkpoint)
    del habits["every_steps"]
    return Checkpoints(directory, **habits)


def _start(
    config: TrainConfig,
    stage: Stage,
    data: Data | DataFactory,
    checkpoints: Checkpoints,
    mesh: Mesh,
    console: Console,
    start: Start | None,
) -> tuple[TrainState, Data]:
    """The newest checkpoint's state, data included; else a new one, warm where the config says so."""
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    abstract = abstract_state(stage, optimizer, config=config.optimizer, mesh=mesh)
    for line in describe(abstract, mesh=mesh):
        console.say(line)
    params, rest = to_items(abstract)
    restored = checkpoints.restore_newest(params=params, optimizer=rest)
    if restored is not None:
        for warning in restored.warnings:
            console.say(f"WARNING: {warning}")
        console.say(f"going on from checkpoint {restored.step}")
        return from_items(restored.params, restored.optimizer), _placed(data, restored.data)
    given: Tree = {}
    if start is not None:
        parts, source = start()
        given = place_parameters(parts, abstract.params)
        console.say(source)
    if config.warm_start is not None:
        vocab_size = stage.vocab_size if isinstance(stage, ReadsText) else None
        taken, report = warm_start(config.warm_start, abstract.params, vocab_size=vocab_size)
        given = merge(taken, given)
        console.say(f"parameters from {config.warm_start}\n{report.summary()}")
    state = create_state(stage, optimizer, config=config.optimizer, mesh=mesh, seed=config.seed, given=given)
    return state, _placed(data, [])


def _placed(data: Data | DataFactory, states: list[Any]) -> Data:
    """The data where `states` left it."""
    if not isinstance(data, Data):
        return data(states)
    if len(states) == jax.process_count():
        data.set_state(states[jax.process_index()])
    elif states:
        raise UserError(
            f"The checkpoint's data state is of {len(states)} processes and there are {jax.process_count()} now; this "
            "data cannot be divided anew: go on with as many processes, or begin another run with train.warm_start."
        )
    return data


def to_items(state: TrainState) -> tuple[Any, dict[str, Any]]:
    """(params, all the rest): the two array items of a checkpoint."""
    rest = {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "params"}
    return state.params, {name: value for name, value in rest.items() if value is not None}


def from_items(params: Any, rest: dict[str, Any]) -> TrainState:
    """The inverse of `to_items`."""
    return TrainState(params=params, ema=rest.get("ema"), **{k: v for k, v in rest.items() if k != "ema"})


@dataclasses.dataclass
class _Run:
    """One call of `train`, once there is a state."""

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

    def steps(self, state: TrainState, data: Data) -> TrainResult:
        """Steps from where `state` is to the end, or to a signal."""
        config = self.config
        step, data_state, last_metrics = int(state.step), data.get_state(), {}
        if step >= config.steps:
            self.console.say(f"nothing to do: checkpoint {step} is the last of {config.steps} steps")
            return TrainResult(state.params, state.ema, step, None)

        train_step = self._compile(state)
        watch = CollapseWatch(variance_ratio=config.collapse_variance, least_rank=config.collapse_rank)
        accumulated, in_flight = Accumulator(), deque[Metrics]()
        # A run on eight fake CPU devices stood still once with two steps in flight, all cores busy elsewhere, and never
        # again when it was tried. XLA means to allow it (its CPU client starts one program with collectives at a time,
        # on a thread a device); but such devices are for tests, where nothing is gained by running ahead.
        several_cpus = jax.default_backend() == "cpu" and jax.local_device_count() > 1
        run_ahead = 0 if several_cpus else config.run_ahead
        throughput = Throughput(self.stage, steps=config.steps)
        prefetcher = Prefetcher(data, spec=self.stage.batch_spec(), mesh=self.mesh)
        try:
            while step < config.steps and not self.stop.stops_after(step):
                with throughput.waiting():
                    batch, data_state = next(prefetcher)
                self.profiler.before_step()
                state, metrics = train_step(state, batch)
                self.profiler.after_step(metrics)
                del batch
                step += 1
                accumulated.add(metrics)
                in_flight.append(metrics)
                if len(in_flight) > run_ahead:
                    self._check_finite(in_flight.popleft(), step - run_ahead)
                throughput.step_done(step, first_metrics=metrics)
                logs = step % config.log_every == 0 or step == config.steps
                if logs:
                    last_metrics = accumulated.result()
                    last_metrics |= throughput.result(step, last_metrics)
                    self._report(step, last_metrics, watch)
                if config.evaluate_every and step % config.evaluate_every == 0 and step < config.steps:
                    last_metrics |= self._evaluate(step, state, throughput)
                if self._saves_at(step):
                    self._save(state, data_state, last_metrics)
            while in_flight:
                self._check_finite(in_flight.popleft(), step - len(in_flight))
            if self.evaluations and step == config.steps:
                last_metrics |= self._evaluate(step, state, throughput)
            self._save(state, data_state, last_metrics)
            self.checkpoints.wait()
        finally:
            self.profiler.close()
            prefetcher.close()
        if step < config.steps:
            self.console.say(
                f"stopped by {self.stop.received or 'a signal to another process'} after step {step}, which is saved; "
                "the same command goes on from there"
            )
        else:
            self.console.say(
                f"done: {step} steps in {duration(throughput.seconds())}; {self.checkpoints.directory}/{step}"
            )
        stopped_by = None if step >= config.steps else self.stop.received or "SIGTERM"
        return TrainResult(state.params, state.ema, step, stopped_by)

    def _compile(self, state: TrainState) -> Callable[..., tuple[TrainState, Metrics]]:
        """Compiles the step ahead of its first call: it is traced once, and a second shape would be an error."""
        started = time.monotonic()
        compiled = compile_train_step(self.config, stage=self.stage, state=state, mesh=self.mesh)
        self.console.say(f"compiled the step in {duration(time.monotonic() - started)}")
        return compiled

    def _check_finite(self, metrics: Metrics, step: int) -> None:
        """Waits for a step that was sent to the device a while ago, and looks whether gradients are still finite."""
        if metrics.value("skipped_in_row") >= self.config.max_skipped_in_row:
            self.checkpoints.wait()
            good = self.checkpoints.newest()
            raise UserError(
                f"The gradient was not finite in {self.config.max_skipped_in_row} steps in a row, up to step {step}. "
                + (
                    f"The last good checkpoint is step {good} in {self.checkpoints.directory}; "
                    if good is not None
                    else ""
                )
                + "lower the learning rate or the clip norm, or look at the data of these steps."
            )

    def _report(self, step: int, metrics: dict[str, float], watch: CollapseWatch) -> None:
        self.console.progress(step, metrics)
        warning = watch.check(metrics)
        if warning is not None:
            self.console.say(warning)
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
                metrics |= {f"eval/{name}": value for name, value in evaluation(step, state.params).items()}
        if self.log is not None and metrics:
            self.log.write(step, metrics)
        return metrics

    def _save(self, state: TrainState, data_state: Any, metrics: dict[str, float]) -> None:
        params, rest = to_items(state)
        self.checkpoints.save(
            int(state.step), params=params, optimizer=rest, data=data_state, config=self.run_config, metrics=metrics
        )
