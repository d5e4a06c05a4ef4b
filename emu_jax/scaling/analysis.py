"""From a table, or a study's table, to the fits that were requested."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emu_jax.errors import UserError
from emu_jax.scaling.fit import FitOptions, FitResult, fit_points, to_json
from emu_jax.scaling.folder import TABLE, read_plan
from emu_jax.scaling.law import Law
from emu_jax.scaling.points import Points, points_from_columns, read_table
from emu_jax.scaling.progress import Outcome
from emu_jax.scaling.vpnls import fit_shared_exponents

Columns = dict[str, list]
LOSSES, GROUPS = "losses", "groups"


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Fits by name.

    Attributes:
      results: one for each loss or for each group.
      kind: "losses" or "groups", what the names are.
      joint: laws of several losses with shared exponents; empty for one loss.
      notes: what was left out, one line each.
      rows: of the table.
    """

    results: dict[str, FitResult]
    kind: str
    joint: dict[str, Law]
    notes: tuple[str, ...]
    rows: list[dict[str, Any]]


def analyze(
    study: Path | None,
    table: Path | None,
    *,
    losses: Sequence[str],
    group: str | None = None,
    options: FitOptions,
) -> Analysis:
    """Fit each loss of a study or of a table, or one loss of each group of rows.

    Raises:
      UserError: no table, no such column, or too few rows.
    """
    source = table if study is None else study / f"{TABLE}.parquet"
    assert source is not None, "a study or a table"
    if study is not None and not source.is_file():
        raise UserError(f"There is no {source}; `python -m emu_jax scaling collect --study={study}` makes it.")
    columns = read_table(source)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    usable, notes = _usable(columns)
    if group is not None:
        if group not in columns or len(losses) > 1:
            raise UserError(f"--group takes one loss and a column of {source}: {', '.join(columns)}.")
        results = {
            str(value): fit_points(
                points_from_columns(_where(usable, group, value), loss=losses[0], source=f"{group} {value}"), options
            )
            for value in dict.fromkeys(usable[group])
        }
        return Analysis(results, GROUPS, {}, notes, rows)
    fitted, held_out = _split(usable, "held_out")
    results = {}
    for loss in losses:
        points = points_from_columns(fitted, loss=loss, source=str(source))
        later = None if study is None else _to_predict(study, held_out, loss)
        results[loss] = fit_points(points, options, held_out=later)
    return Analysis(results, LOSSES, _joint(fitted, losses, source), notes, rows)


def fit_json(analysis: Analysis) -> dict[str, Any]:
    """Return the JSON of `fit`: of one loss its fit itself, else a fit for each name."""
    found = {name: to_json(result) for name, result in analysis.results.items()}
    notes = {"notes": list(analysis.notes)}
    if analysis.kind == LOSSES and len(found) == 1:
        return next(iter(found.values())) | notes
    joint = {name: dataclasses.asdict(law) for name, law in analysis.joint.items()}
    return {analysis.kind: found} | ({"joint": joint} if joint else {}) | notes


def _usable(columns: Columns) -> tuple[Columns, tuple[str, ...]]:
    """Return the rows of finished runs, and what was left out."""
    if "outcome" not in columns:
        return columns, ()
    outcomes = columns["outcome"]
    dropped = [value for value in outcomes if value != Outcome.FINISHED.value]
    notes = tuple(f"left out: {dropped.count(value)} runs that are {value}" for value in dict.fromkeys(dropped))
    return _where(columns, "outcome", Outcome.FINISHED.value), notes


def _where(columns: Columns, name: str, value: Any) -> Columns:
    keep = [i for i, found in enumerate(columns[name]) if found == value]
    return {key: [values[i] for i in keep] for key, values in columns.items()}


def _split(columns: Columns, name: str) -> tuple[Columns, Columns]:
    """Return the rows where the column is false or not there, and those where it is true."""
    if name not in columns:
        return columns, {key: [] for key in columns}
    return _where(columns, name, False), _where(columns, name, True)


def _to_predict(study: Path, held_out: Columns, loss: str) -> Points | None:
    """Return the held-out runs, with a loss of NaN where a run is still to come; None where none is planned."""
    runs = [run for run in read_plan(study).runs if run.held_out]
    if not runs:
        return None
    finished = dict(zip(held_out["id"], range(len(held_out["id"])), strict=True))

    def value(name: str, run_id: str, planned: float) -> float:
        found = held_out[name][finished[run_id]] if run_id in finished else None
        return planned if found is None else float(found)

    return Points(
        params=np.array([float(run.params) for run in runs]),
        tokens=np.array([value("tokens", run.id, run.tokens) for run in runs]),
        loss=np.array([value(loss, run.id, np.nan) for run in runs]),
        budget=np.array([value("budget", run.id, run.budget) for run in runs]),
    )


def _joint(columns: Columns, losses: Sequence[str], source: Path) -> dict[str, Law]:
    """Return laws with shared exponents over the rows that have every loss; empty for one loss."""
    if len(losses) < 2:
        return {}
    complete = [i for i in range(len(columns["params"])) if all(columns[loss][i] is not None for loss in losses)]
    rows = {name: [values[i] for i in complete] for name, values in columns.items()}
    tables = [points_from_columns(rows, loss=loss, source=str(source)) for loss in losses]
    laws = fit_shared_exponents(tables[0], np.stack([points.loss for points in tables]))
    return dict(zip(losses, laws, strict=True))
