"""Run the tasks of the synthetic world on a model and on an untrained one, and format the scores."""

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from emu_jax.demo.examples import Sample, Settings
from emu_jax.demo.models import DiffusionImageGenerator, Models, untrained_like
from emu_jax.demo.scores import Score, Scores, grouped
from emu_jax.demo.tasks import world_tasks
from emu_jax.generation.pipeline import EmuPipeline

Progress = Callable[[str, int, int], None]  # (task, tasks done, number of tasks), before each task and at the end


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
      untrained: scores of the untrained model; empty without one.
      samples: by section of the report.
      seconds: by task; those of the untrained model are summed under "untrained".
    """

    settings: Settings
    scores: Scores
    untrained: Scores
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """Return the content of metrics.json: every score as a number, groups of scores as dictionaries.

        `num_scenes` has the number of scenes of each score under the same names, and `intervals` the 95% bootstrap
        intervals over the scenes. `untrained` has the same layout, with its own `num_scenes` and `intervals`. `chance`
        holds the scores for which guessing has a meaning. `seconds_total` and `peak_rss_gb` are those of this
        evaluation and this process.
        """
        chances = {name: score.chance for name, score in self.scores.items() if score.chance is not None}
        return _numbers(self.scores) | {
            "untrained": _numbers(self.untrained),
            "chance": grouped(chances),
            "seconds": {name: round(seconds, 2) for name, seconds in self.seconds.items()},
            "seconds_total": round(sum(self.seconds.values()), 2),
            "peak_rss_gb": round(peak_memory_gb(), 3),
            "settings": dataclasses.asdict(self.settings),
        }


def evaluate(
    models: Models,
    *,
    settings: Settings,
    untrained: Models | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run every task on `models`, and with a quarter of the scenes and no beams on `untrained`."""
    runs = [(models, settings, True)]
    if untrained is not None:
        runs.append((untrained, _quarter(settings), False))
    tasks = [
        (name if trained else f"{name} (untrained)", task, trained)
        for run, run_settings, trained in runs
        for name, task in world_tasks(run, run_settings, grade_classifier=trained).items()
    ]
    trained_scores: Scores = {}
    untrained_scores: Scores = {}
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
            trained_scores |= result.scores
            samples |= result.samples
        else:
            untrained_scores |= result.scores
    if progress is not None:
        progress("done", len(tasks), len(tasks))
    return Evaluation(settings, trained_scores, untrained_scores, samples, seconds)


def evaluate_pipeline(
    emu: EmuPipeline, settings: Settings, *, sampling: Mapping[str, Any], progress: Progress | None = None
) -> Evaluation:
    """Evaluate a loaded model and an untrained one of the same config.

    Args:
      settings: its image size is replaced by that of the model, its batch size is at most the number of scenes.
      sampling: fields of `DiffusionImageGenerator`: sampler, steps, guidance_scale, seed.
    """
    settings = dataclasses.replace(
        settings,
        image_size=emu.config.vision.image_size,
        batch_size=min(settings.batch_size, settings.num_scenes),
    )
    sampling = {"batch_size": min(DiffusionImageGenerator.batch_size, settings.num_images), **sampling}
    trained, untrained = (
        Models(one, DiffusionImageGenerator(one, **sampling) if one.has_visual_decoder else None)
        for one in (emu, untrained_like(emu, seed=settings.seed))
    )
    return evaluate(trained, settings=settings, untrained=untrained, progress=progress)


def score_table(evaluation: Evaluation) -> Table:
    """Return the scores as a table for the terminal."""
    title = "Synthetic shapes world, scenes not in training; ±: half of the 95% interval"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("score", no_wrap=True)
    for title in ("trained", "±", "untrained", "chance", "scenes"):
        table.add_column(title, justify="right")
    for name, score in evaluation.scores.items():
        other = evaluation.untrained.get(name)
        table.add_row(
            name,
            format_score(name, score.value),
            "" if score.interval is None else format_score(name, (score.interval[1] - score.interval[0]) / 2),
            "" if other is None else format_score(name, other.value),
            "" if score.chance is None else format_score(name, score.chance),
            str(score.count),
        )
    return table


def format_score(name: str, value: float) -> str:
    """Return a score as text: accuracies in per cent, measures of embeddings as numbers."""
    if name.startswith("visual_embedding"):
        return f"{value:.3g}"
    if 0 < value < 1e-4:
        return "<0.01%"
    return f"{value:.1%}" if value >= 0.01 or value == 0 else f"{value:.2%}"


def format_interval(name: str, score: Score) -> str:
    """Return the interval of a score as text; empty without one."""
    return "" if score.interval is None else " to ".join(format_score(name, end) for end in score.interval)


def peak_memory_gb(*, children: bool = False) -> float:
    """Return the peak resident memory of this process, or of its largest finished child, in 10^9 bytes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _numbers(scores: Scores) -> dict[str, Any]:
    values = grouped({name: score.value for name, score in scores.items()})
    intervals = grouped({name: score.interval for name, score in scores.items() if score.interval is not None})
    counts = grouped({name: score.count for name, score in scores.items()})
    return values | {"num_scenes": counts, "intervals": intervals}


def _quarter(settings: Settings) -> Settings:
    return dataclasses.replace(
        settings,
        num_scenes=max(1, settings.num_scenes // 4),
        num_images=max(1, settings.num_images // 4),
        num_beams=1,
        num_samples=0,
    )
