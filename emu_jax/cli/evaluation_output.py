"""Print tasks, results and tables of `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from emu_jax.cli import synthetic
from emu_jax.evaluation.catalog import all_tasks
from emu_jax.evaluation.compare import comparison_table
from emu_jax.evaluation.results import TaskResult, flat_scores
from emu_jax.evaluation.task import Task


def print_tasks() -> None:
    """Print every task with its splits, files and the layout of its predictions."""
    for task in all_tasks():
        print(f"{task.name}: {task.title}\n    splits: {', '.join(task.splits)} (default {task.splits[0]})")
        for path, meaning in task.files.items():
            print(f"    ROOT/{path}: {meaning}")
        print(f"    predictions: {', '.join((*task.key_fields, task.value_field))}; main score {task.headline}")
    print(f"{synthetic.NAME}: the synthetic shapes world of the demo; no files")


def print_comparison(folders: Sequence[Path]) -> None:
    """Print the scores of several outputs as one table."""
    Console().print(comparison_table(folders))


def print_result(result: TaskResult, output: Path) -> None:
    """Print one line: where the scores are, or why there are none."""
    task = result.task
    if result.scored is not None:
        print(f"{task.name}: scores of {len(result.examples)} examples are in {output / task.name}")
        return
    file = output / task.name / (task.server_file[0] if task.server_file else "predictions.jsonl")
    print(f"{task.name} ({result.split}): {_unscored(task)} {file}")


def print_table(results: Sequence[TaskResult]) -> None:
    """Print the scores of all results that have any."""
    table = Table()
    for title in ("task", "score", "value", "95% interval", "examples"):
        table.add_column(title, justify="left" if title in ("task", "score") else "right")
    for result in results:
        if result.scored is None:
            continue
        for name, score in flat_scores(result.scored.scores).items():
            interval = score.printed_interval
            between = "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
            table.add_row(result.task.name, name, f"{score.printed:.2f}", between, str(score.count))
    if table.row_count:
        Console().print(table)


def _unscored(task: Task) -> str:
    if task.name == "mmvet":
        return "give --judge-base-url for scores; its evaluator takes"
    if task.metric is None:
        return "the images are in the layout of the benchmark's own scorer, next to"
    if task.makes_images:
        return "give --inception or --clip for scores; the images are listed in"
    return "the split has no answers here; the server takes"
