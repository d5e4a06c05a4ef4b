"""One table of all runs of a study: what was planned, what was measured, and how each run ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet

from emu_jax.errors import UserError
from emu_jax.io.files import atomic_file, read_json
from emu_jax.scaling.folder import TABLE, workdir_of
from emu_jax.scaling.plan import Plan, Run
from emu_jax.scaling.progress import OUTCOME, Outcome, outcome_of
from emu_jax.scaling.runner import PROVENANCE
from emu_jax.training.log import read_metrics

EVALUATION = "eval/"
FINAL_RECORDS = 3  # log lines at the end whose mean is the training loss
_MEASURED = ("fill/tokens", "fill/images")
_MONITORS = ("visual_embedding_variance", "visual_embedding_cosine", "visual_embedding_rank")
_SPEED = ("tokens_per_second", "model_tflops_per_second")


def collect(study: Path, plan: Plan) -> list[dict[str, Any]]:
    """Return a row for each run that has begun, collapsed and diverged ones too.

    Columns: `id`, `outcome`, `held_out`, `params`, `tokens`, `budget` (N, D and C, with the measured fraction of
    padding and number of images), `width`, `steps`, `learning_rate`, `seed`, `commit`; `loss`; every held-out metric
    as `eval_SET_TERM`, with `eval_text` and `eval_regression` as means over the sets; every training loss, the mean of
    the last log lines, as `train_...`; the monitors of collapse. `loss` is `eval_text`, or the training loss where
    nothing is held out (`config.evaluation.sets`).
    """
    rows = []
    for run in plan.runs:
        workdir = workdir_of(study, run)
        outcome = outcome_of(workdir, run)
        if outcome is not Outcome.MISSING:
            rows.append(_row(run, workdir, outcome))
    return rows


def _row(run: Run, workdir: Path, outcome: Outcome) -> dict[str, Any]:
    records = [record for record in read_metrics(workdir) if "warning" not in record]
    logged = [record for record in records if "loss" in record]
    tokens, budget = _measured(run, workdir, logged)
    row: dict[str, Any] = {
        "id": run.id,
        "outcome": outcome.value,
        "reason": read_json(workdir / OUTCOME).get("reason") if (workdir / OUTCOME).is_file() else None,
        "held_out": run.held_out,
        "params": float(run.params),
        "tokens": tokens,
        "budget": budget,
        "planned_budget": run.point,
        "width": run.width,
        "steps": run.steps,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "commit": _commit(workdir),
    }
    evaluations = [record for record in records if any(name.startswith(EVALUATION) for name in record)]
    held_out = evaluations[-1] if evaluations else {}
    evaluated = {_column(name): value for name, value in held_out.items() if name.startswith(EVALUATION)}
    names = sorted({name for record in logged[-FINAL_RECORDS:] for name in record if name.split("/")[0] == "loss"})
    trained = {f"train_{_column(name)}": _mean(logged[-FINAL_RECORDS:], name) for name in names}
    means = {f"eval_{term}": _mean_over_sets(held_out, term) for term in ("text", "regression")}
    row["loss"] = trained.get("train_loss") if means["eval_text"] is None else means["eval_text"]
    row |= means | evaluated | trained
    row |= {_column(name): _mean(logged[-FINAL_RECORDS:], name) for name in (*_MONITORS, *_SPEED)}
    return row


def _measured(run: Run, workdir: Path, logged: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return D and C at the measured fraction of padding; the planned ones where nothing was measured."""
    fill, slots = (_mean(logged, name) for name in _MEASURED)
    if fill is None or slots is None or not (workdir / "config.json").is_file():
        return run.tokens, run.budget
    batch = read_json(workdir / "config.json")["data"]["batch"]
    rows = run.steps * batch["batch_size"]
    tokens, images = rows * batch["length"] * fill, rows * batch["max_images"] * slots
    return tokens, 6 * (run.decoder_params * tokens + run.image_params_tokens * images)


def _mean_over_sets(record: Mapping[str, Any], term: str) -> float | None:
    """Return the mean of the held-out metrics eval/SET/TERM of a record; None where there is none."""
    values = [
        value
        for name, value in record.items()
        if value is not None and name.startswith(EVALUATION) and name.endswith(f"/{term}")
    ]
    return math.fsum(values) / len(values) if values else None


def _mean(records: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [record[name] for record in records if record.get(name) is not None]
    return math.fsum(values) / len(values) if values else None


def _column(name: str) -> str:
    return name.replace("/", "_").replace("-", "_")


def _commit(workdir: Path) -> str | None:
    return read_json(workdir / PROVENANCE).get("commit") if (workdir / PROVENANCE).is_file() else None


def write_table(study: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Write STUDY/points.csv and STUDY/points.parquet.

    Raises:
      UserError: no run has begun.
    """
    if not rows:
        raise UserError(f"No run of {study} has begun; `python -m emu_jax scaling run --study={study}` runs them.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    paths = [study / f"{TABLE}.csv", study / f"{TABLE}.parquet"]
    with atomic_file(paths[0]) as temporary:
        pyarrow.csv.write_csv(table, temporary)
    with atomic_file(paths[1]) as temporary:
        pyarrow.parquet.write_table(table, temporary)
    return paths
