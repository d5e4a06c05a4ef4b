"""Scores: a mean over scenes with its interval, the number of scenes, and the score of random guessing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from emu_jax.evaluation.metrics.scores import Interval, bootstrap_interval


@dataclass(frozen=True)
class Score:
    """A mean over `count` scenes.

    Attributes:
      chance: score of guessing; None where it has no meaning, as for a variance.
      interval: 95% bootstrap interval over the scenes; None for one scene, and for measures of all scenes.
    """

    value: float
    count: int
    chance: float | None = None
    interval: Interval | None = None


Scores = dict[str, Score]  # "/" in a name separates its group: "caption_attributes/shape"


def mean_score(values: Iterable[float], *, chance: float | None = None) -> Score:
    """Return the mean of at least one value in 0..1."""
    numbers = [float(value) for value in values]
    return Score(sum(numbers) / len(numbers), len(numbers), chance, bootstrap_interval(numbers))


def grouped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return names with "/" as nested dicts: `{"a": 1, "b/c": 2, "b/d": 3}` -> `{"a": 1, "b": {"c": 2, "d": 3}}`."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        group, _, leaf = name.rpartition("/")
        (tree.setdefault(group, {}) if group else tree)[leaf] = value
    return tree
