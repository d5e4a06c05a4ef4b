"""The report of a training run: losses, monitors of collapse, speed and configuration."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emu_jax.reporting.about import about_sections, footer
from emu_jax.reporting.charts import Line, line_chart
from emu_jax.reporting.numbers import duration, number
from emu_jax.reporting.page import Section, escape, write_page

Records = Sequence[Mapping[str, Any]]  # lines of metrics.jsonl

REPORT = "report.html"

_MONITORS = {
    "Embeddings: variance": ["visual_embedding_variance"],
    "Embeddings: mean cosine": ["visual_embedding_cosine"],
    "Embeddings: effective rank": ["visual_embedding_rank"],
    "Gradient norm": ["gradient_norm"],
    "Learning rate, fraction of its peak": ["learning_rate_fraction"],
    "Rows filled": ["fill/tokens", "fill/images"],
    "Waiting for data, fraction of the time": ["data_wait"],
    "Peak memory, GB": ["device_memory_gb", "host_memory_gb"],
    "MFU": ["mfu"],
}
_LOGARITHMIC = ("Loss", "Embeddings: variance", "Gradient norm", "Gradient norm by part", "Update norm by part")


def write_run_report(workdir: Path | str, records: Records, *, config: Mapping[str, Any] | None = None) -> Path:
    """Write WORKDIR/report.html of any training run from its metrics and return the path."""
    workdir = Path(workdir)
    sections = [*run_sections([(workdir.name, records)]), *about_sections(config=config)]
    path = workdir / REPORT
    write_page(
        path, sections, title=f"Training run {workdir.name}", lead="Losses and monitors, step by step.", footer=footer()
    )
    return path


def run_sections(runs: Iterable[tuple[str, Records]]) -> list[Section]:
    """Return a section with loss curves, monitors of collapse and speed for each run (title, records)."""
    return [Section(f"Training: {title}", _run_charts(records)) for title, records in runs]


def _run_charts(records: Records) -> str:
    measured = [record for record in records if "warning" not in record]
    warnings = [(record["step"], str(record["warning"])) for record in records if "warning" in record]
    if not measured:
        return ""
    names = sorted({name for record in measured for name in record})
    losses = [name for name in names if name == "loss" or (name.startswith("loss/") and name.count("/") == 1)]
    groups = {"Loss": losses}
    for loss in losses[1:] if len(losses) > 1 else []:
        groups[f"{loss.removeprefix('loss/').capitalize()} loss by set"] = [
            n for n in names if n.startswith(f"{loss}/")
        ]
    groups |= _MONITORS
    for norm in ("gradient", "update"):
        groups[f"{norm.capitalize()} norm by part"] = [n for n in names if n.startswith(f"{norm}_norm/")]
    evaluated = [name for name in names if name.startswith("eval/") and name.count("/") <= 2]  # not scores per group
    for name in evaluated:
        groups.setdefault(f"Evaluation: {name.split('/')[1]}", []).append(name)
    charts = []
    for title, members in groups.items():
        lines = [
            _line(name, measured, label="last" if len(members) == 1 else name.rpartition("/")[2])
            for name in members
            if name in names
        ]
        charts.append(line_chart(title, lines, marks=warnings, logarithmic=title in _LOGARITHMIC))
    notes = "".join(f'<p class="warning">Step {step}: {escape(text)}</p>' for step, text in warnings)
    return f'<p>{escape(_summary(measured))}</p>{notes}<div class="charts">{"".join(charts)}</div>'


def _line(name: str, records: Records, *, label: str) -> Line:
    present = [record for record in records if name in record]
    return Line(label, [record["step"] for record in present], [record[name] for record in present])


def _summary(records: Records) -> str:
    """Return a line of speed.

    "2000 steps in 5m10s between first and last record; 12.4 steps/s, 31.2k tokens/s; waiting for data 2% of the time."
    """
    last = records[-1]
    parts = [f"{last['step']} steps in {duration(last['time'] - records[0]['time'])} between first and last record"]
    rates = []
    for name, unit in (("steps", "steps/s"), ("tokens", "tokens/s"), ("images", "images/s")):
        values = [r[f"{name}_per_second"] for r in records if r.get(f"{name}_per_second") is not None]
        if values:
            rates.append(f"{number(float(np.median(values)))} {unit}")
    parts += [", ".join(rates)] if rates else []
    waits = [record["data_wait"] for record in records if record.get("data_wait") is not None]
    parts += [f"waiting for data {np.mean(waits):.0%} of the time"] if waits else []
    return "; ".join(parts) + "."
