"""Metrics on their way from the device to the log: one small array a step, fetched only when a line is written."""

import dataclasses
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.losses import Mean


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """The metrics of one step: `values` float32 [2, K] (sums, weights), `names` K of them (static)."""

    values: jax.Array
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    def value(self, name: str) -> float:
        """sum / weight of one metric; NaN where nothing was counted."""
        return _divide(np.asarray(self.values), self.names)[name]


def pack(metrics: dict[str, Mean]) -> Metrics:
    """One array out of many scalars: a fetch costs per array, not per byte."""
    names = tuple(sorted(metrics))
    rows = [[metrics[name].sum.astype(jnp.float32) for name in names], [metrics[name].weight for name in names]]
    return Metrics(jnp.asarray(rows, jnp.float32), names)


class Accumulator:
    """Adds up the metrics of the steps since the last log line, without making the device wait."""

    def __init__(self) -> None:
        self._pending: deque[Metrics] = deque()

    def add(self, metrics: Metrics) -> None:
        """Takes the metrics of one more step; they may not be computed yet."""
        self._pending.append(metrics)

    def result(self) -> dict[str, float]:
        """Weighted means over what was added; waits for the device, and starts anew."""
        if not self._pending:
            return {}
        names = self._pending[-1].names
        total = np.sum([np.asarray(metrics.values, np.float64) for metrics in self._pending], axis=0)
        self._pending.clear()
        return _divide(total, names)


def _divide(values: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    sums, weights = values
    return {
        name: float(total / weight) if weight else float("nan")
        for name, total, weight in zip(names, sums, weights, strict=True)
    }
