"""Approach 3 of arXiv 2203.15556: Huber loss on log L, L-BFGS from a grid of starts.

The law is log L = logsumexp(a - alpha log N, b - beta log D, e) with A = exp(a), B = exp(b), E = exp(e). The sum of
the Huber losses (delta 1e-3) is minimized, not their mean: the mean stops L-BFGS before it has converged (arXiv
2404.10102).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from emu_jax.scaling.law import Law
from emu_jax.scaling.lbfgs import Objective, minimize_many
from emu_jax.scaling.points import Points
from emu_jax.typing import Float, Int

DELTA = 1e-3
# The published starts, appendix D.3: a, b, e, alpha, beta; 4,500 of them.
STARTS = np.array(
    list(
        itertools.product(
            np.arange(0, 30, 5.0), np.arange(0, 30, 5.0), np.arange(-1, 1.5, 0.5), np.arange(0, 2.5, 0.5),
            np.arange(0, 2.5, 0.5),
        )
    )
)  # fmt: skip
SCREENING, SURVIVORS = 10, 300  # L-BFGS iterations of every start; starts that continue
ITERATIONS, POLISHED = 150, 6  # iterations of those; starts that are brought to convergence
TINY = 1e-300  # in place of E = 0, whose logarithm is infinite


def fit_huber(points: Points, *, pinned: float | None = None) -> Law:
    """Fit the law by Approach 3 from all published starts; `pinned` holds E at a value."""
    data = _Data(points, pinned)
    losses = np.log(points.loss)
    objective = _objective(data, losses)
    thetas, values = minimize_many(objective, data.centered(STARTS), iterations=SCREENING)
    thetas, values = minimize_many(objective, thetas[np.argsort(values)[:SURVIVORS]], iterations=ITERATIONS)
    polished = [_polish(data, theta, losses) for theta in thetas[np.argsort(values)[:POLISHED]]]
    return data.law(min(polished, key=lambda found: found.cost).x)


def fit_huber_many(
    points: Points, counts: Int[np.ndarray, "s n"], *, starts: Sequence[Law], pinned: float | None = None
) -> list[Law]:
    """Fit one law to each of `s` bootstrap samples, from the laws in `starts`, by a trust-region method.

    Args:
      points: the runs.
      counts: how often each point is in a sample.
      starts: fits of `points` itself.
      pinned: the value of E; None fits it.
    """
    laws = []
    for count in counts:
        sample = points[np.repeat(np.arange(len(points)), count)]
        data = _Data(sample, pinned)
        losses = np.log(sample.loss)
        found = [_polish(data, data.of_law(law), losses, tolerance=1e-9) for law in starts]
        laws.append(data.law(min(found, key=lambda found: found.cost).x))
    return laws


class _Data:
    """Sizes around their means in log space: a and b are then those of a typical run, and L-BFGS converges sooner."""

    def __init__(self, points: Points, pinned: float | None) -> None:
        self.flops = points.flops_per_param_token
        self.center = np.log(points.params).mean(), np.log(points.tokens).mean()
        self.log_params, self.log_tokens = (
            np.log(points.params) - self.center[0],
            np.log(points.tokens) - self.center[1],
        )
        self.pinned = None if pinned is None else math.log(max(pinned, TINY))

    def centered(self, thetas: Float[np.ndarray, "k 5"]) -> Float[np.ndarray, "k 5"]:
        """Return (a, b, e, alpha, beta) with a and b at the means."""
        moved = np.array(thetas, float)
        moved[:, 0] -= thetas[:, 3] * self.center[0]
        moved[:, 1] -= thetas[:, 4] * self.center[1]
        return moved

    def law(self, theta: np.ndarray) -> Law:
        """Return the law of one (a, b, e, alpha, beta)."""
        a, b, e, alpha, beta = map(float, theta)
        floor = math.exp(e) if self.pinned is None else (math.exp(self.pinned) if self.pinned > math.log(TINY) else 0.0)
        a, b = a + alpha * self.center[0], b + beta * self.center[1]
        return Law(floor, math.exp(a), alpha, math.exp(b), beta, self.flops)

    def of_law(self, law: Law) -> np.ndarray:
        """Return the centered (a, b, e, alpha, beta) of a law."""
        logs = [math.log(max(value, 1e-12)) for value in (law.A, law.B, law.E)]
        return self.centered(np.array([[*logs, law.alpha, law.beta]]))[0]


def _objective(data: _Data, losses: Float[np.ndarray, "n"]) -> Objective:
    """Return the sum of Huber losses over delta^2, with its gradient, of many (a, b, e, alpha, beta) at once."""

    def objective(thetas: Float[np.ndarray, "k 5"]) -> tuple[np.ndarray, np.ndarray]:
        log_loss, parts = _log_loss(data, thetas)
        residual = log_loss - losses
        size = np.abs(residual)
        values = np.where(size < DELTA, 0.5 * residual**2, DELTA * (size - 0.5 * DELTA)).sum(axis=1)
        pull = np.clip(residual, -DELTA, DELTA) / DELTA**2
        of_size, of_data, floor = (part * pull for part in parts)
        gradients = [
            of_size.sum(1),
            of_data.sum(1),
            floor.sum(1),
            -of_size @ data.log_params,
            -of_data @ data.log_tokens,
        ]
        return values / DELTA**2, np.stack(gradients, axis=1)

    return objective


def _log_loss(data: _Data, thetas: Float[np.ndarray, "k 5"]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return log L [k n] and the fractions of L that A, B and E make up; the last is 0 where E is pinned."""
    a, b, e, alpha, beta = thetas.T[:, :, None]
    e = e if data.pinned is None else np.full_like(e, data.pinned)
    terms = a - alpha * data.log_params, b - beta * data.log_tokens, e + np.zeros_like(data.log_params)
    top = np.maximum(np.maximum(terms[0], terms[1]), terms[2])
    scaled = [np.exp(term - top) for term in terms]
    total = scaled[0] + scaled[1] + scaled[2]
    free = 1.0 if data.pinned is None else 0.0
    return top + np.log(total), (scaled[0] / total, scaled[1] / total, free * scaled[2] / total)


def _polish(data: _Data, theta: np.ndarray, losses: np.ndarray, *, tolerance: float = 1e-15) -> Any:
    """Bring the same objective to its last digits by a trust-region method; L-BFGS is slow there."""

    def residuals(theta: np.ndarray) -> np.ndarray:
        return _log_loss(data, theta[None])[0][0] - losses

    def jacobian(theta: np.ndarray) -> np.ndarray:
        of_size, of_data, floor = (part[0] for part in _log_loss(data, theta[None])[1])
        return np.stack([of_size, of_data, floor, -data.log_params * of_size, -data.log_tokens * of_data], axis=1)

    tolerances = dict.fromkeys(("ftol", "xtol", "gtol"), tolerance)
    return least_squares(
        residuals, theta, jac=jacobian, loss="huber", f_scale=DELTA, x_scale="jac", max_nfev=500, **tolerances
    )
