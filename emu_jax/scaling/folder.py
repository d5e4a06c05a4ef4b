"""The folder of a study: STUDY/plan.json, STUDY/plan.csv, STUDY/runs/ID (workdirs of `train`) and the table."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from emu_jax.errors import UserError
from emu_jax.io.files import read_json, write_json, write_text
from emu_jax.scaling.plan import Plan, Run, plan_from_json

PLAN, PLAN_TABLE, RUNS = "plan.json", "plan.csv", "runs"
TABLE = "points"  # with .csv and .parquet
COLUMNS = ("id", "budget", "params", "tokens", "steps", "learning_rate", "seed", "held_out", "parent", "hours")


def workdir_of(study: Path, run: Run) -> Path:
    """Return the workdir of a run."""
    return study / RUNS / run.id


def read_plan(study: Path) -> Plan:
    """Return the plan of a study.

    Raises:
      UserError: there is none.
    """
    if not (study / PLAN).is_file():
        raise UserError(f"{study} holds no {PLAN}; make one with `python -m emu_jax scaling plan --study={study}`.")
    return plan_from_json(read_json(study / PLAN))


def write_plan(study: Path, plan: Plan) -> None:
    """Write STUDY/plan.json and STUDY/plan.csv.

    Raises:
      UserError: the folder holds a plan whose runs are not all in this one.
    """
    if (study / PLAN).is_file():
        planned = {run.id: run.flags() for run in plan.runs}
        changed = [run.id for run in read_plan(study).runs if planned.get(run.id) != run.flags()]
        if changed:
            raise UserError(
                f"{study} holds another plan: {len(changed)} of its runs, such as {changed[0]}, are changed or missing "
                "in this one. Name another --study; a plan may only be extended."
            )
    write_json(study / PLAN, plan.to_json())
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*COLUMNS, "flags"])
    rows.writerows([*(getattr(run, name) for name in COLUMNS), " ".join(run.flags())] for run in plan.runs)
    write_text(study / PLAN_TABLE, text.getvalue())
