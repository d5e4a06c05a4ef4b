"""Move metrics from the device to the log: one small array per step, fetched only when a log line is written."""

from collections import deque
from collections.abc import Mapping
from typing import Any

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
        self._names: tuple[str, ...] = ()
        self._sum: np.ndarray | None = None  # float64 [2, K], of steps that are not pending
        self._pending: deque[Metrics] = deque()

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of one more step; the device may still be computing them."""
        self._pending.append(metrics)

    def result(self) -> dict[str, float]:
        """Return weighted means over the added steps and reset. Waits for the device."""
        self._add_pending()
        total, self._sum = self._sum, None
        return {} if total is None else _divide(total, self._names)

    def get_state(self) -> dict[str, Any]:
        """Return the sums since the last `result`, as a JSON value. Waits for the device."""
        self._add_pending()
        return {"names": list(self._names), "sum": None if self._sum is None else self._sum.tolist()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `get_state`."""
        self._pending.clear()
        self._names = tuple(state["names"])
        self._sum = None if state["sum"] is None else np.asarray(state["sum"], np.float64)

    def _add_pending(self) -> None:
        for metrics in self._pending:
            values = np.asarray(metrics.values, np.float64)
            # A resumed run may compute other metrics, such as those of another set of monitors.
            if self._sum is not None and metrics.names == self._names:
                values = self._sum + values
            self._sum, self._names = values, metrics.names
        self._pending.clear()


def _divide(values: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    sums, weights = values
    return {
        name: float(total / weight) if weight else float("nan")
        for name, total, weight in zip(names, sums, weights, strict=True)
    }
