"""The state of one run, as its workdir shows it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emu_jax.io.files import read_json, write_json
from emu_jax.scaling.plan import Run
from emu_jax.training.log import read_metrics
from emu_jax.training.loop import CHECKPOINTS

OUTCOME = "outcome.json"


class Outcome(enum.Enum):
    """State of a run."""

    MISSING = "missing"  # nothing there
    UNFINISHED = "unfinished"  # stopped or running
    FINISHED = "finished"
    COLLAPSED = "collapsed"  # finished, and the visual embeddings hardly depend on the image
    DIVERGED = "diverged"  # the gradient was not finite, or the loss at the end is not


def mark_diverged(workdir: Path, *, reason: str) -> None:
    """Record that `train` gave up."""
    write_json(workdir / OUTCOME, {"outcome": Outcome.DIVERGED.value, "reason": reason})


def outcome_of(workdir: Path, run: Run, *, collapse_variance: float = 0.02, collapse_rank: float = 1.5) -> Outcome:
    """Return how the run in `workdir` ended; the thresholds are those of `train`."""
    if (workdir / OUTCOME).is_file():
        return Outcome(read_json(workdir / OUTCOME)["outcome"])
    records = [record for record in read_metrics(workdir) if "warning" not in record]
    if not records:
        return Outcome.UNFINISHED if (workdir / CHECKPOINTS).is_dir() else Outcome.MISSING
    saved = has_checkpoint(workdir, run.steps) or not (workdir / CHECKPOINTS).is_dir()  # a pod's are in its bucket
    if records[-1]["step"] < run.steps or not saved:
        return Outcome.UNFINISHED
    last: dict[str, Any] = next((record for record in reversed(records) if "loss" in record), {})
    if last.get("loss", 0.0) is None:
        return Outcome.DIVERGED
    collapsed = is_collapsed(records, variance_fraction=collapse_variance, least_rank=collapse_rank)
    return Outcome.COLLAPSED if collapsed else Outcome.FINISHED


def has_checkpoint(workdir: Path, step: int) -> bool:
    """Return True where the step is complete; Orbax renames its folder only then."""
    return (workdir / CHECKPOINTS / str(step)).is_dir()


def is_collapsed(records: Sequence[dict[str, Any]], *, variance_fraction: float, least_rank: float) -> bool:
    """Return True where the monitors of the last record are below the thresholds of the collapse warning."""
    monitored = [record for record in records if record.get("visual_embedding_variance") is not None]
    if not monitored:
        return False
    best = max(record["visual_embedding_variance"] for record in monitored)
    last = monitored[-1]
    rank = last.get("visual_embedding_rank")
    return last["visual_embedding_variance"] < variance_fraction * best or (rank is not None and rank < least_rank)
