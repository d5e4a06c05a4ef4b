"""One table of the scores of several outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from emu_jax.errors import UserError
from emu_jax.evaluation.results import SCORES, flat_scores, read_summary


def comparison_table(folders: Sequence[Path]) -> Table:
    """Return a table with a row per score and a column per output; `*` marks protocols that differ.

    Args:
      folders: OUT folders, each with OUT/TASK/scores.json.

    Raises:
      UserError: a folder holds no scores.
    """
    columns = [read_summaries(folder) for folder in folders]
    tasks = dict.fromkeys(task for column in columns for task in column)
    table = Table()
    table.add_column("task")
    table.add_column("score")
    for folder in folders:
        table.add_column(str(folder), justify="right")
    for task in tasks:
        summaries = [column.get(task) for column in columns]
        differing = _differing([summary for summary in summaries if summary is not None])
        mark = "*" if differing else ""
        names = dict.fromkeys(name for s in summaries if s is not None for name in flat_scores(s["scores"]))
        for name in names:
            table.add_row(f"{task}{mark}", name, *(_cell(summary, name) for summary in summaries))
        if differing:
            table.caption = f"{table.caption or ''}* {task}: {', '.join(differing)} differ.\n"
    return table


def read_summaries(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the content of each OUT/TASK/scores.json with scores, by task.

    Raises:
      UserError: the folder holds no scores.
    """
    found = {path.parent.name: read_summary(path.parent) for path in sorted(folder.glob(f"*/{SCORES}"))}
    found = {task: summary for task, summary in found.items() if "units" in summary}
    if not found:
        raise UserError(f"{folder} holds no TASK/{SCORES}; name the --output of an evaluation.")
    return found


def _differing(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Return what was not the same: protocol, split, prompt, options, shots, number of examples."""
    names = ("protocol", "split", "prompt", "generation", "shots", "num_examples")
    return [name for name in names if len({repr(summary.get(name)) for summary in summaries}) > 1]


def _cell(summary: dict[str, Any] | None, name: str) -> str:
    if summary is None or name not in (flat := flat_scores(summary["scores"])):
        return ""
    interval = flat_scores(summary["intervals"])[name]
    half = "" if interval is None else f" ±{(interval[1] - interval[0]) / 2:.2f}"
    return f"{flat[name]:.2f}{half}"
