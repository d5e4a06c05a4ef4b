"""Move metrics from the device to the log: one small array per step, fetched only when a log line is written."""

from collections import deque

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Average


@flax.struct.dataclass
class Metrics:
    """Metrics of one step.

    Attributes:
      values: float32 [2, K]; totals in the first row, counts in the second.
      names: the K names (static).
    """

    values: jax.Array
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)

    def value(self, name: str) -> float:
        """Return total / count of one metric; NaN if its count is 0."""
        return _divide(np.asarray(self.values), self.names)[name]


def pack(metrics: dict[str, Average]) -> Metrics:
    """Pack many scalars into one array: the cost of a transfer is per array, not per byte."""
    names = tuple(sorted(metrics))
    rows = [[metrics[name].total.astype(jnp.float32) for name in names], [metrics[name].count for name in names]]
    return Metrics(jnp.asarray(rows, jnp.float32), names)


class Accumulator:
    """Sum the metrics of the steps since the last log line, without waiting for the device."""

    def __init__(self) -> None:
        self._pending: deque[Metrics] = deque()

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of one more step; the device may still be computing them."""
        self._pending.append(metrics)

    def result(self) -> dict[str, float]:
        """Return weighted means over the added steps and reset. Waits for the device."""
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
