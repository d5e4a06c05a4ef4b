"""Bootstrap intervals: points are drawn with replacement, every approach is fitted to each sample."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from emu_jax.typing import Float, Int

NUM_PARAMETERS = 5


def draw_counts(num_points: int, *, samples: int, seed: int) -> Int[np.ndarray, "s n"]:
    """Return how often each point is drawn in each sample."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_points, np.full(num_points, 1 / num_points), size=samples)


def interval(
    values: Float[np.ndarray, "s"], *, level: float, num_points: int, num_parameters: int = NUM_PARAMETERS
) -> tuple[float, float]:
    """Return the expanded percentile interval of bootstrap values; values that are not finite are left out.

    The percentiles are those of Student's t with the degrees of freedom that the fit leaves, so that intervals of few
    points are not too narrow (Hesterberg, The American Statistician 69, 2015, section 3.4).
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    freedom = max(num_points - num_parameters, 1)
    t = stats.t.ppf((1 - level) / 2, freedom) * math.sqrt(num_points / freedom)
    tail = stats.norm.cdf(t)
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
