"""scores.json and the server's file of one task."""

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emu_jax.evaluation.example import Example
from emu_jax.evaluation.metrics.scores import Score, Scored
from emu_jax.evaluation.task import Task
from emu_jax.io.files import read_json, write_json

SCORES = "scores.json"
_DISTRIBUTIONS = ("emu-jax", "jax", "flax", "numpy", "pycocoevalcap", "nltk")


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """A task's scores and what they were computed from.

    Attributes:
      examples: those that were scored, in the order of `predictions`.
      total: examples of the split (or of its `--limit`).
      missing: reason by example for those without a prediction; they count in no score.
      scored: None for a split without annotations.
      settings: prompt, generation options, shots, model: saved with the scores.
    """

    task: Task
    split: str
    examples: Sequence[Example]
    predictions: Sequence[Any]
    total: int
    missing: Mapping[str, str]
    scored: Scored | None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the content of scores.json.

        `scores` are in the units that papers print, given by `units`; `intervals` are 95% bootstrap intervals in the
        same units. `official` holds the same scores as the official code returns them, and its per-example results.
        """
        summary: dict[str, Any] = {
            "task": self.task.name,
            "title": self.task.title,
            "split": self.split,
            "num_examples": len(self.examples),
            "num_examples_in_split": self.total,
            "num_missing": len(self.missing),
        }
        if self.missing:
            summary["missing"] = dict(self.missing)
        if self.scored is not None:
            tree = self.scored.scores
            summary |= {
                "scores": _map(tree, lambda score: score.printed),
                "units": _map(tree, lambda score: score.unit),
                "intervals": _map(tree, lambda score: score.printed_interval),
                "examples_per_score": _map(tree, lambda score: score.count),
                "headline": self.task.headline,
                "protocol": {"source": self.task.source, **self.scored.protocol},
            }
        summary |= {**self.settings, "versions": versions()}
        if self.scored is not None:
            summary["official"] = {**_map(self.scored.scores, lambda score: score.value), **self.scored.each}
        return summary

    def write(self, folder: Path) -> None:
        """Write scores.json and the server's file to OUT/TASK."""
        write_json(folder / SCORES, self.summary())
        if self.task.server_file is not None:
            name, content = self.task.server_file
            write_json(folder / name, content(self.examples, self.predictions), indent=None)

    @property
    def headline(self) -> Score | None:
        """The score that papers print; None for a split without annotations."""
        found: Any = None if self.scored is None else self.scored.scores
        for name in self.task.headline.split("/"):
            found = found.get(name) if found is not None else None
        return found


def flat_scores(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested scores with names joined by "/"."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flat_scores(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the content of a scores.json.

    Raises:
      UserError: there is none, or it is not valid JSON.
    """
    return read_json(folder / SCORES)


def versions() -> dict[str, str]:
    """Return the versions of the packages that scores depend on."""
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _map(tree: Mapping[str, Any], function: Any) -> dict[str, Any]:
    return {
        name: _map(value, function) if isinstance(value, Mapping) else function(value) for name, value in tree.items()
    }
