"""Approach 3 of arXiv 2203.15556: Huber loss on log L, L-BFGS from a grid of starts.

The law is log L = logsumexp(a - alpha log N, b - beta log D, e) with A = exp(a), B = exp(b), E = exp(e). The sum of the
Huber losses (delta 1e-3) is minimized, not their mean: the mean stops L-BFGS before it has converged (arXiv 2404.10102).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import least_squares

from emu_jax.scaling.law import Law
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
CHUNK = 300  # starts that are minimized at once
SCREENING, ITERATIONS = 8, 60  # L-BFGS iterations of every start, and of the CHUNK best
POLISHED = 8  # of the best are brought to convergence
ROW_MULTIPLE = 64  # points are padded to this with weight 0, so that tables of similar length share one program


def fit_huber(points: Points, *, pinned: float | None = None) -> Law:
    """Fit the law by Approach 3 from all published starts; `pinned` holds E at a value."""
    data = _Data(points, pinned)
    losses = np.log(points.loss)
    chunks = np.array_split(data.centered(STARTS), len(STARTS) // CHUNK)
    screened = np.concatenate([_minimize(data, chunk, losses, iterations=SCREENING) for chunk in chunks])
    refined = _minimize(data, screened[:, :5][_lowest(screened, CHUNK)], losses, iterations=ITERATIONS)
    polished = [_polish(data, theta, losses) for theta in refined[:, :5][_lowest(refined, POLISHED)]]
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


def _lowest(found: Float[np.ndarray, "k 6"], count: int) -> np.ndarray:
    """Return the rows with the lowest objective, the last column."""
    return np.argsort(np.where(np.isfinite(found[:, 5]), found[:, 5], np.inf))[:count]


class _Data:
    """Sizes around their means in log space: a and b are then those of a typical run, and L-BFGS converges sooner."""

    def __init__(self, points: Points, pinned: float | None) -> None:
        self.flops = points.flops_per_param_token
        self.center = np.log(points.params).mean(), np.log(points.tokens).mean()
        self.log_params, self.log_tokens = (
            np.log(points.params) - self.center[0],
            np.log(points.tokens) - self.center[1],
        )
        self.pinned = None if pinned is None else (math.log(pinned) if pinned > 0 else -np.inf)

    def centered(self, thetas: Float[np.ndarray, "k 5"]) -> Float[np.ndarray, "k 5"]:
        """Return (a, b, e, alpha, beta) with a and b at the means."""
        moved = np.array(thetas, float)
        moved[:, 0] -= thetas[:, 3] * self.center[0]
        moved[:, 1] -= thetas[:, 4] * self.center[1]
        return moved

    def law(self, theta: np.ndarray) -> Law:
        """Return the law of one (a, b, e, alpha, beta)."""
        a, b, e, alpha, beta = map(float, theta)
        e = e if self.pinned is None else self.pinned
        a, b = a + alpha * self.center[0], b + beta * self.center[1]
        return Law(math.exp(e), math.exp(a), alpha, math.exp(b), beta, self.flops)

    def of_law(self, law: Law) -> np.ndarray:
        """Return the centered (a, b, e, alpha, beta) of a law."""
        logs = [math.log(max(value, 1e-12)) for value in (law.A, law.B, law.E)]
        return self.centered(np.array([[*logs, law.alpha, law.beta]]))[0]


def _minimize(data: _Data, thetas: np.ndarray, losses: np.ndarray, *, iterations: int) -> Float[np.ndarray, "k 6"]:
    """Run L-BFGS from each start; returns (a, b, e, alpha, beta) and the objective."""
    padding = (0, -len(losses) % ROW_MULTIPLE)
    rows = [np.pad(row, padding) for row in (losses, np.ones_like(losses), data.log_params, data.log_tokens)]
    with jax.enable_x64(True):
        return np.asarray(_solver(data.pinned)(jnp.asarray(thetas), *map(jnp.asarray, rows), iterations))


@functools.cache
def _solver(pinned: float | None) -> Callable[..., jax.Array]:
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=8, store_grad=True)
    optimizer = optax.lbfgs(memory_size=8, linesearch=search)

    def minimize(theta, losses, weights, log_params, log_tokens, iterations):
        def objective(theta):
            residual = losses - _log_loss(jnp, theta, log_params, log_tokens, pinned)
            return jnp.sum(weights * optax.losses.huber_loss(residual, delta=DELTA)) / DELTA**2

        value_and_grad = optax.value_and_grad_from_state(objective)

        def step(_, carry):
            theta, state = carry
            value, grad = value_and_grad(theta, state=state)
            updates, state = optimizer.update(grad, state, theta, value=value, grad=grad, value_fn=objective)
            return optax.apply_updates(theta, updates), state

        theta, _ = jax.lax.fori_loop(0, iterations, step, (theta, optimizer.init(theta)))
        return jnp.append(theta, objective(theta))

    return jax.jit(jax.vmap(minimize, in_axes=(0, None, None, None, None, None)))


def _log_loss(numpy, theta, log_params, log_tokens, pinned):
    """Return log L; `numpy` is NumPy or jax.numpy."""
    a, b, e, alpha, beta = theta
    e = e if pinned is None else pinned
    terms = numpy.stack([a - alpha * log_params, b - beta * log_tokens, e + 0 * log_params])
    top = numpy.max(terms, axis=0)
    return top + numpy.log(numpy.sum(numpy.exp(terms - top), axis=0))


def _polish(data: _Data, theta: np.ndarray, losses: np.ndarray, *, tolerance: float = 1e-15) -> Any:
    """Bring the same objective to its last digits, which L-BFGS leaves where the residuals vanish."""

    def residuals(theta: np.ndarray) -> np.ndarray:
        return _log_loss(np, theta, data.log_params, data.log_tokens, data.pinned) - losses

    def jacobian(theta: np.ndarray) -> np.ndarray:
        a, b, e, alpha, beta = theta
        log_loss = residuals(theta) + losses
        of_size = np.exp(a - alpha * data.log_params - log_loss)
        of_data = np.exp(b - beta * data.log_tokens - log_loss)
        floor = np.exp(e - log_loss) if data.pinned is None else 0 * log_loss
        return np.stack([of_size, of_data, floor, -data.log_params * of_size, -data.log_tokens * of_data], axis=1)

    tolerances = dict.fromkeys(("ftol", "xtol", "gtol"), tolerance)
    return least_squares(
        residuals, theta, jac=jacobian, loss="huber", f_scale=DELTA, x_scale="jac", max_nfev=500, **tolerances
    )
