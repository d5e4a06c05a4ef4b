"""Run a model over the examples of a task: batched, prefetched, divided over processes, resumed after a kill."""

import collections
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from emu_jax.errors import UserError
from emu_jax.evaluation.batches import Batch, Plan, plan_batches
from emu_jax.evaluation.compilations import CompilationCounter
from emu_jax.evaluation.example import Example, Key
from emu_jax.evaluation.predictions import PREDICTIONS, PredictionFile
from emu_jax.evaluation.prompts import Shots
from emu_jax.evaluation.scoring import check_missing
from emu_jax.evaluation.task import BatchContext, Task
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.io.files import read_json, write_json
from emu_jax.waiting import barrier

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # (examples done, examples of this process)

RUN = "run.json"
MAX_SKEW_SECONDS = 24 * 3600  # the first process scores the task before; one may have most predictions after a resume
_BATCHES_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class ModelRun:
    """The result of a run: predictions by key, and the reason for each example without one."""

    predictions: Mapping[Key, Any]
    missing: Mapping[Key, str]


@dataclasses.dataclass(frozen=True)
class Division:
    """The part of this process in a run.

    Attributes:
      index, count: this process and the number of processes that divide the batches.
      is_first: this process gets the result.
    """

    index: int = 0
    count: int = 1
    is_first: bool = True

    @classmethod
    def of(cls, emu: EmuPipeline) -> "Division":
        """Divide the batches over the processes, unless one model is sharded over all of them."""
        index = jax.process_index()
        return cls(0, 1, index == 0) if spans_processes(emu) else cls(index, jax.process_count(), index == 0)

    @property
    def saves(self) -> bool:
        """False if another process saves the same predictions."""
        return self.is_first or self.count > 1


def run_model(
    emu: EmuPipeline,
    task: Task,
    examples: Sequence[Example],
    *,
    folder: Path,
    shots: Shots,
    identity: Mapping[str, Any],
    batch_size: int,
    max_missing: int,
    division: Division = Division(),
    progress: Progress = lambda done, total: None,
) -> ModelRun | None:
    """Predict all examples; those that an interrupted run has predicted are not repeated.

    Each process holds a model, predicts every n-th batch, and appends to its own file under `folder`. If the model is
    sharded over several processes, all of them predict every batch together, and the first one appends. Batches are the
    same for any number of processes and after a resume, and so are the predictions.

    Args:
      identity: what must not change between a run and its resumption; saved in FOLDER/run.json.
      max_missing: images that may be missing or unreadable.
      division: default: this process predicts every batch.

    Returns:
      The predictions; None on processes other than the first.

    Raises:
      UserError: FOLDER holds another run, or too many images are missing or unreadable.
    """
    assert task.predictor is not None
    missing = missing_media(examples)
    check_missing(task, missing, total=len(examples), max_missing=max_missing)
    present = [example for example in examples if example.key not in missing]
    lengths = [task.predictor.length(emu, example, shots(example)) for example in present]
    plan = plan_batches(present, lengths, batch_size=batch_size)

    file = PredictionFile(folder, task, process=division.index, processes=division.count, saves=division.saves)
    _check_identity(folder, identity, is_main=division.is_first)
    done, _ = file.read()  # media that could not be read are tried again
    barrier("read predictions", seconds=MAX_SKEW_SECONDS)  # before a process appends
    own = [batch for batch in plan.batches if batch.number % division.count == division.index]
    _predict_all(emu, task, plan, own, file, shots, done, max_missing - len(missing), progress)
    file.close()
    barrier("predictions of the other processes", seconds=MAX_SKEW_SECONDS)
    if not division.is_first:
        return None
    predictions, skipped = file.finish(examples)
    return ModelRun(predictions, {**missing, **skipped})


def missing_media(examples: Sequence[Example]) -> dict[Key, str]:
    """Return the examples whose image or video is not there. Each folder is listed once."""
    listed: dict[Path, set[str]] = {}
    missing: dict[Key, str] = {}
    for example in examples:
        for path in example.media:
            if path.parent not in listed:
                listed[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
            if path.name not in listed[path.parent]:
                missing[example.key] = f"there is no file {path}"
                break
    return missing


def spans_processes(emu: EmuPipeline) -> bool:
    """Return True if one model is sharded over several processes, which then make the same calls."""
    return emu.mesh is not None and len({device.process_index for device in emu.mesh.devices.flat}) > 1


def _predict_all(
    emu: EmuPipeline,
    task: Task,
    plan: Plan,
    batches: Sequence[Batch],
    file: PredictionFile,
    shots: Shots,
    done: Mapping[Key, Any],
    allowed: int,
    progress: Progress,
) -> None:
    assert task.predictor is not None
    open_batches = [batch for batch in batches if any(example.key not in done for example in batch.examples)]
    total = sum(len(batch.examples) for batch in batches)
    finished = total - sum(len(batch.examples) for batch in open_batches)
    progress(finished, total)
    unreadable = warm = 0
    with CompilationCounter() as compilations:
        for batch, prepared in _prepared(emu, task, open_batches, shots):
            rows = {key: value for key, value in prepared.items() if not isinstance(value, UserError)}
            for key, value in prepared.items():
                if isinstance(value, UserError) and key not in done:
                    file.skip(key, str(value))
                    unreadable += 1
                    _check_unreadable(task, key, value, unreadable, allowed)
            if rows:
                values = list(rows.values())
                filled = values + values[-1:] * (batch.rows - len(values))
                context = BatchContext(batch.number, file.folder)
                predicted = task.predictor.predict(emu, filled, context=context)
                new = {k: v for k, v in zip(rows, predicted, strict=False) if k not in done}
                file.append(new.keys(), new.values())
            finished += len(batch.examples)
            progress(finished, total)
            if batch.number < plan.warm_up:
                warm = compilations.count
        if open_batches:
            log.info(
                "%s: %d programs compiled in the first %d batches, %d in the other %d",
                task.name, warm, plan.warm_up, compilations.count - warm, len(plan.batches) - plan.warm_up,
            )  # fmt: skip


def _prepared(
    emu: EmuPipeline, task: Task, batches: Sequence[Batch], shots: Shots
) -> Iterator[tuple[Batch, dict[Key, Any]]]:
    """Yield batches with their prepared examples, or the error of each that cannot be read, a few batches ahead."""
    assert task.predictor is not None
    prepare = task.predictor.prepare

    def one(example: Example) -> Any:
        try:
            return prepare(emu, example, shots(example))
        except UserError as error:
            return error

    waiting: collections.deque[tuple[Batch, list[Future[Any]]]] = collections.deque()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="read_media") as pool:
        for batch in batches:
            waiting.append((batch, [pool.submit(one, example) for example in batch.examples]))
            if len(waiting) > _BATCHES_AHEAD:
                yield _collected(*waiting.popleft())
        while waiting:
            yield _collected(*waiting.popleft())


def _collected(batch: Batch, futures: Sequence[Future[Any]]) -> tuple[Batch, dict[Key, Any]]:
    return batch, {example.key: future.result() for example, future in zip(batch.examples, futures, strict=True)}


def _check_unreadable(task: Task, key: Key, error: UserError, count: int, allowed: int) -> None:
    named = " ".join(map(str, key))
    log.warning("%s %s is left out: %s", task.name, named, error)
    if count > allowed:
        raise UserError(
            f"{task.name} {named} cannot be read: {error} Repair the file, or leave it out with --max-missing; the "
            "predictions so far are saved, and the same command resumes."
        )


def _check_identity(folder: Path, identity: Mapping[str, Any], *, is_main: bool) -> None:
    path = folder / RUN
    if path.is_file():
        saved = read_json(path)
        changed = sorted(name for name in {*saved, *identity} if saved.get(name) != identity.get(name))
        if changed:
            raise UserError(
                f"{folder} holds the predictions of another run ({', '.join(changed)} differ). Name another --output, "
                "or remove that folder."
            )
    elif is_main:
        if (folder / PREDICTIONS).is_file():
            raise UserError(f"{folder} holds predictions without a {RUN}. Name another --output, or remove them.")
        write_json(path, identity)
