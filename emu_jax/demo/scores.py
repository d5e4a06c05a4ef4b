"""Scores: a mean over scenes, how many scenes, and what one who does not look would reach."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """`chance` is None where guessing has no meaning, as for a variance."""

    value: float
    count: int
    chance: float | None = None


Scores = dict[str, Score]  # a "/" in a name puts it into a group: "caption_attributes/shape"


def share(hits: Iterable[float], *, chance: float | None = None) -> Score:
    """The mean of `hits` (0 or 1, or parts of 1); there must be some."""
    values = [float(hit) for hit in hits]
    return Score(sum(values) / len(values), len(values), chance)


def grouped(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a": 1, "b/c": 2, "b/d": 3}` -> `{"a": 1, "b": {"c": 2, "d": 3}}`."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        group, _, leaf = name.rpartition("/")
        (tree.setdefault(group, {}) if group else tree)[leaf] = value
    return tree
