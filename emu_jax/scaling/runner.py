"""Run what a plan lists and is not finished, one run after another, each as `python -m emu_jax train`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from emu_jax.errors import UserError
from emu_jax.io.files import file_errors, write_json
from emu_jax.reporting.numbers import duration
from emu_jax.scaling.folder import workdir_of
from emu_jax.scaling.plan import Plan, Run
from emu_jax.scaling.progress import Outcome, has_checkpoint, mark_diverged, outcome_of
from emu_jax.training.loop import CHECKPOINTS

LOG = "train.log"
PROVENANCE = "run.json"
LOCK = ".scaling.lock"  # another file than that of `train`, which locks the workdir itself
NOT_FINITE = "was not finite"  # of the message with which `train` gives up
DONE = (Outcome.FINISHED, Outcome.COLLAPSED, Outcome.DIVERGED)

Say = Callable[[str], None]


def slice_of(plan: Plan, *, index: int, of: int) -> list[Run]:
    """Return the runs of worker `index` of `of`: complete chains, the longest first to the least loaded worker.

    Raises:
      UserError: no such worker.
    """
    if of < 1 or not 0 <= index < of:
        raise UserError(f"--index counts from 0 and must be below --of: {index} of {of} does not exist.")
    loads = [0.0] * of
    chosen: list[Run] = []
    for chain in sorted(plan.chains(), key=lambda chain: -sum(run.hours for run in chain)):
        worker = loads.index(min(loads))
        loads[worker] += sum(run.hours for run in chain)
        if worker == index:
            chosen += chain
    order = {run.id: (run.point, number) for number, run in enumerate(plan.runs)}
    return sorted(chosen, key=lambda run: order[run.id])


def unfinished(study: Path, runs: Sequence[Run]) -> list[Run]:
    """Return the runs that are still to be trained."""
    return [run for run in runs if outcome_of(workdir_of(study, run), run) not in DONE]


def run_all(study: Path, runs: Sequence[Run], *, say: Say) -> bool:
    """Train every run of `runs` that is not finished, in order; returns False where a signal stopped it.

    A run that was killed resumes from its newest checkpoint. A run whose gradient stays non-finite is marked as
    diverged, and the next one starts.

    Raises:
      UserError: a run fails for another reason; the last lines of its log are named.
    """
    for number, run in enumerate(runs, start=1):
        workdir = workdir_of(study, run)
        with file_errors("write", workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        heading = f"[{number}/{len(runs)}] {run.id}"
        with _locked(workdir, say=say) as lock:
            outcome = outcome_of(workdir, run)
            if outcome in DONE:
                say(f"{heading}: {outcome.value}")
                continue
            if not _start_from_parent(study, run, workdir):
                mark_diverged(workdir, reason=f"{run.parent} has no checkpoint {run.start}")
                say(f"{heading}: its parent {run.parent} diverged")
                continue
            say(f"{heading}: {run.new_steps} steps, {run.budget:.3g} FLOPs, about {duration(3600 * run.hours)}")
            if not _train(run, workdir, lock):
                say(f"{heading}: stopped and saved; the same command resumes")
                return False
            say(f"{heading}: {outcome_of(workdir, run).value}")
    return True


def commands(runs: Sequence[Run], *, bucket: str, pod_options: str = "") -> list[str]:
    """Return what to paste for pods, one run after another; a run waits for its end (tools/tpu/pod.sh keep).

    Args:
      runs: a parent before its children.
      bucket: takes a folder for each run.
      pod_options: of pod.sh, such as "--type=v5p-64 --spot".
    """
    bucket, options = bucket.rstrip("/"), shlex.split(pod_options)
    lines = []
    for run in runs:
        workdir = f"{bucket}/{run.id}"
        lines.append(f"# {run.id}: {run.new_steps} steps, {run.budget:.3g} FLOPs, about {run.hours:.2f} hours")
        if run.parent is not None:
            source = f"{bucket}/{run.parent}/{CHECKPOINTS}/{run.start}"
            lines.append(shlex.join(["gcloud", "storage", "cp", "-r", source, f"{workdir}/{CHECKPOINTS}/"]))
        lines.append(shlex.join(["tools/tpu/pod.sh", "keep", *options, f"--workdir={workdir}", "--", *run.flags()]))
    return lines


def _start_from_parent(study: Path, run: Run, workdir: Path) -> bool:
    """Put the parent's checkpoint where `train` resumes from; returns False where the parent left none."""
    if run.parent is None or (workdir / CHECKPOINTS).is_dir():
        return True
    parent = study / workdir.parent.name / run.parent
    if not has_checkpoint(parent, run.start):
        return False
    source = parent / CHECKPOINTS / str(run.start)
    with file_errors("copy", source):
        temporary = Path(tempfile.mkdtemp(prefix=f".{CHECKPOINTS}.", dir=workdir))
        try:
            shutil.copytree(source, temporary / str(run.start), copy_function=_link)
            os.replace(temporary, workdir / CHECKPOINTS)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return True


def _link(source: str, target: str) -> None:
    """Link a file, or copy it where the file system has no links; Orbax never changes a file that it wrote."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _train(run: Run, workdir: Path, lock: int) -> bool:
    """Run `train` in its own process; returns False where it was stopped by a signal."""
    write_json(workdir / PROVENANCE, {"id": run.id, "commit": _commit(), "flags": run.flags()})
    words = [sys.executable, "-m", "emu_jax", "train", *run.flags(), f"--workdir={workdir}"]
    with file_errors("write", workdir / LOG), open(workdir / LOG, "ab") as log:
        # The process inherits the lock, so that it stays locked while `train` runs, also when this one is killed.
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,))
    with _forwarding_signals(process) as stopped:
        code = process.wait()
    lines = (workdir / LOG).read_text(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    if code == 0:
        return last.startswith("finished ") or not stopped
    if NOT_FINITE in last:
        mark_diverged(workdir, reason=last)
        return True
    if stopped:
        return False
    raise UserError(f"{run.id} failed (exit code {code}): {last} The full log is {workdir / LOG}.")


@contextlib.contextmanager
def _forwarding_signals(process: subprocess.Popen) -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM on to `process`, which saves and exits; yields the signals that came."""
    received: list[int] = []

    def forward(signum: int, frame: object) -> None:
        received.append(signum)
        if signum == signal.SIGTERM:  # Ctrl-C reaches the complete process group from the terminal
            process.send_signal(signum)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _locked(workdir: Path, *, say: Say) -> Iterator[int]:
    """Hold the workdir's lock, waiting for a process that trains there already."""
    with file_errors("write", workdir / LOCK):
        lock = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process trains {workdir.name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _commit() -> str | None:
    """Return the commit of the checkout that this package is in, marked where files are changed; None without git."""
    describe = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
