"""Runs the tasks of an evaluation, beside an untrained model and chance; what becomes metrics.json and a table."""

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from emu_jax.demo.evaluation import drawn_world
from emu_jax.demo.examples import Sample, Settings
from emu_jax.demo.models import Models
from emu_jax.demo.scores import Scores, grouped

Progress = Callable[[str, int, int], None]  # (task, tasks done, tasks in all), before each task and at the end


@dataclass(frozen=True)
class Evaluation:
    """All that was found.

    Attributes:
      untrained: scores of the untrained model; empty where none was given.
      samples: by section of the page.
      seconds: by task, the untrained model's under "untrained".
    """

    settings: Settings
    scores: Scores
    untrained: Scores
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds: every score as a number, groups of them as dictionaries.

        Under `num_scenes` the same names tell the scenes behind each; `untrained` is built alike (with its own
        `num_scenes`); `chance` has the scores for which guessing has a meaning. `seconds_total` and `peak_rss_gb` are
        of this evaluation and this process.
        """
        chances = {name: score.chance for name, score in self.scores.items() if score.chance is not None}
        return _numbers(self.scores) | {
            "untrained": _numbers(self.untrained),
            "chance": grouped(chances),
            "seconds": {name: round(seconds, 2) for name, seconds in self.seconds.items()},
            "seconds_total": round(sum(self.seconds.values()), 2),
            "peak_rss_gb": round(peak_rss_gb(), 3),
            "settings": dataclasses.asdict(self.settings),
        }


def evaluate(
    models: Models,
    *,
    settings: Settings,
    untrained: Models | None = None,
    untrained_settings: Settings | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Runs every task of the drawn world on `models`, and on `untrained` where given.

    `untrained_settings` may ask fewer scenes of the model that knows nothing (default: a quarter, and no beams).
    """
    runs = [(models, settings, True)]
    if untrained is not None:
        runs.append((untrained, untrained_settings or _quarter(settings), False))
    tasks = [
        (name if trained else f"{name} (untrained)", task, trained)
        for run, how, trained in runs
        for name, task in drawn_world(run.emu, run.painter, how, judge=trained).items()
    ]
    scores: Scores = {}
    others: Scores = {}
    samples: dict[str, list[Sample]] = {}
    seconds: dict[str, float] = {}
    for done, (name, task, trained) in enumerate(tasks):
        if progress is not None:
            progress(name, done, len(tasks))
        started = time.monotonic()
        result = task()
        key = name if trained else "untrained"
        seconds[key] = seconds.get(key, 0.0) + time.monotonic() - started
        if trained:
            scores |= result.scores
            samples |= result.samples
        else:
            others |= result.scores
    if progress is not None:
        progress("done", len(tasks), len(tasks))
    return Evaluation(settings, scores, others, samples, seconds)


def score_table(evaluation: Evaluation) -> Table:
    """The scores as a table for the terminal."""
    table = Table(title="The drawn world, scenes never seen", title_justify="left")
    table.add_column("score")
    for title in ("trained", "untrained", "chance", "scenes"):
        table.add_column(title, justify="right")
    for name, score in evaluation.scores.items():
        other = evaluation.untrained.get(name)
        table.add_row(
            name,
            shown(name, score.value),
            "" if other is None else shown(name, other.value),
            "" if score.chance is None else shown(name, score.chance),
            str(score.count),
        )
    return table


def shown(name: str, value: float) -> str:
    """A score as people read it: shares as per cent, measures of embeddings as numbers."""
    if name.startswith("visual_embedding"):
        return f"{value:.3g}"
    if 0 < value < 1e-4:
        return "<0.01%"
    return f"{value:.1%}" if value >= 0.01 or value == 0 else f"{value:.2%}"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(temporary, path)


def peak_rss_gb() -> float:
    """The most memory that this process has held, in 10^9 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def _numbers(scores: Scores) -> dict[str, Any]:
    values = grouped({name: score.value for name, score in scores.items()})
    return values | {"num_scenes": grouped({name: score.count for name, score in scores.items()})}


def _quarter(settings: Settings) -> Settings:
    return dataclasses.replace(
        settings,
        num_scenes=max(1, settings.num_scenes // 4),
        num_images=max(1, settings.num_images // 4),
        num_beams=1,
        num_samples=0,
    )
