"""Scores: a mean over scenes, the number of scenes, and the score of random guessing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """A mean over `count` scenes. `chance` is None where guessing has no meaning, as for a variance."""

    value: float
    count: int
    chance: float | None = None


Scores = dict[str, Score]  # "/" in a name separates its group: "caption_attributes/shape"


def mean_score(values: Iterable[float], *, chance: float | None = None) -> Score:
    """Return the mean of at least one value in 0..1."""
    numbers = [float(value) for value in values]
    return Score(sum(numbers) / len(numbers), len(numbers), chance)


def grouped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return names with "/" as nested dicts: `{"a": 1, "b/c": 2, "b/d": 3}` -> `{"a": 1, "b": {"c": 2, "d": 3}}`."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        group, _, leaf = name.rpartition("/")
        (tree.setdefault(group, {}) if group else tree)[leaf] = value
    return tree
