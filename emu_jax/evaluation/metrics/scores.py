"""Scores with their unit, number of examples and 95% bootstrap interval."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Interval = tuple[float, float]
PERCENT = "percent"
HUNDREDFOLD = "100 x the official value"
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of a benchmark.

    Attributes:
      value: as the official code returns it.
      count: examples behind it.
      scale: papers print `value * scale`.
      unit: of the printed number.
      interval: 95% bootstrap interval of `value` over the examples; None where it is not defined.
    """

    value: float
    count: int
    scale: float = 1.0
    unit: str = PERCENT
    interval: Interval | None = None

    @property
    def printed(self) -> float:
        """The number in the unit that papers print."""
        return self.value * self.scale

    @property
    def printed_interval(self) -> Interval | None:
        return None if self.interval is None else (self.interval[0] * self.scale, self.interval[1] * self.scale)


ScoreTree = Mapping[str, "Score | Mapping[str, Score]"]


@dataclasses.dataclass(frozen=True)
class Scored:
    """The result of a metric.

    Attributes:
      scores: by name; a nested mapping holds one score per group, for example per answer type.
      per_example: the main score of each example, by the position of the example; ranks examples in the report.
      each: per-example results under the names of the official code; saved with the official scores.
      protocol: facts that decide whether the numbers are comparable.
    """

    scores: ScoreTree
    per_example: Sequence[float] = ()
    each: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def bootstrap_interval(
    statistics: np.ndarray | Sequence[float], combine: Callable[[np.ndarray], np.ndarray] | None = None
) -> Interval | None:
    """Return the 95% percentile interval of a score over resampled examples.

    Args:
      statistics: additive statistics of each example, `[n]` or `[n, k]`.
      combine: map mean statistics `[RESAMPLES, k]` to scores `[RESAMPLES]`; default: the first column.

    Returns:
      Lower and upper end; None for fewer than two examples.
    """
    table = np.asarray(statistics, np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if len(table) < 2:
        return None
    rng = np.random.default_rng(0)
    means = np.empty((RESAMPLES, table.shape[1]))
    for row in range(RESAMPLES):
        counts = np.bincount(rng.integers(len(table), size=len(table)), minlength=len(table))
        means[row] = counts @ table / len(table)
    scores = means[:, 0] if combine is None else combine(means)
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


def mean_score(values: Sequence[float], *, scale: float = 1.0, unit: str = PERCENT, digits: int | None = None) -> Score:
    """Return the mean of `values` with its interval, rounded to `digits` decimals where given."""
    mean = float(sum(values)) / len(values)
    value = mean if digits is None else round(mean, digits)
    return Score(value, len(values), scale, unit, bootstrap_interval(values))
