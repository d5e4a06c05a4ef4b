"""Approach 3 of arXiv 2203.15556: Huber loss on log L, L-BFGS from a grid of starts.

The law is log L = logsumexp(a - alpha log N, b - beta log D, e) with A = exp(a), B = exp(b), E = exp(e). The sum of the
Huber losses (delta 1e-3) is minimized, not their mean: the mean stops L-BFGS before it has converged (arXiv 2404.10102).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import least_squares

from emu_jax.scaling.law import Law
from emu_jax.scaling.points import Points
from emu_jax.typing import Float

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
ROUNDS = ((40, 256), (150, 24), (600, 1))  # (L-BFGS iterations, starts that go on)


def fit_huber(points: Points, *, pinned: float | None = None) -> Law:
    """Fit the law by Approach 3 from all published starts; `pinned` holds E at a value."""
    data = _Data(points, pinned)
    losses, weights = np.log(points.loss)[None], np.ones((1, len(points)))
    thetas = data.centered(STARTS)[None]
    for iterations, survivors in ROUNDS:
        thetas, values = _minimize(data, thetas, losses, weights, iterations=iterations)
        order = np.argsort(np.where(np.isfinite(values), values, np.inf), axis=1)[:, :survivors]
        thetas = np.take_along_axis(thetas, order[..., None], axis=1)
    return data.law(_polish(data, thetas[0, 0], losses[0]))


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


def _minimize(
    data: _Data, thetas: np.ndarray, losses: np.ndarray, weights: np.ndarray, *, iterations: int
) -> tuple[Float[np.ndarray, "s k 5"], Float[np.ndarray, "s k"]]:
    """Run L-BFGS from `k` starts for each of `s` data sets."""
    with jax.enable_x64(True):
        found = _solver(iterations, data.pinned)(
            *map(jnp.asarray, (thetas, losses, weights, data.log_params, data.log_tokens))
        )
        return np.asarray(found[0]), np.asarray(found[1])


@functools.cache
def _solver(iterations: int, pinned: float | None) -> Callable[..., tuple[jax.Array, jax.Array]]:
    optimizer = optax.lbfgs(memory_size=8, linesearch=optax.scale_by_backtracking_linesearch(max_backtracking_steps=8, store_grad=True))

    def one(theta, losses, weights, log_params, log_tokens):
        def objective(theta):
            residual = losses - _log_loss(jnp, theta, log_params, log_tokens, pinned)
            return jnp.sum(weights * optax.losses.huber_loss(residual, delta=DELTA)) / DELTA**2

        value_and_grad = optax.value_and_grad_from_state(objective)

        def step(carry, _):
            theta, state = carry
            value, grad = value_and_grad(theta, state=state)
            updates, state = optimizer.update(grad, state, theta, value=value, grad=grad, value_fn=objective)
            return (optax.apply_updates(theta, updates), state), None

        (theta, _), _ = jax.lax.scan(step, (theta, optimizer.init(theta)), length=iterations)
        return theta, objective(theta)

    starts = jax.vmap(one, in_axes=(0, None, None, None, None))
    return jax.jit(jax.vmap(starts, in_axes=(0, 0, 0, None, None)))


def _log_loss(numpy, theta, log_params, log_tokens, pinned):
    """Return log L; `numpy` is NumPy or jax.numpy."""
    a, b, e, alpha, beta = theta
    e = e if pinned is None else pinned
    terms = numpy.stack([a - alpha * log_params, b - beta * log_tokens, e + 0 * log_params])
    top = numpy.max(terms, axis=0)
    return top + numpy.log(numpy.sum(numpy.exp(terms - top), axis=0))


def _polish(data: _Data, theta: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Bring the same objective to the last digits: L-BFGS leaves them where the residuals vanish."""
    residuals = lambda theta: _log_loss(np, theta, data.log_params, data.log_tokens, data.pinned) - losses

    def jacobian(theta):
        a, b, e, alpha, beta = theta
        log_loss = residuals(theta) + losses
        of_size = np.exp(a - alpha * data.log_params - log_loss)
        of_data = np.exp(b - beta * data.log_tokens - log_loss)
        floor = np.exp(e - log_loss) if data.pinned is None else 0 * log_loss
        return np.stack([of_size, of_data, floor, -data.log_params * of_size, -data.log_tokens * of_data], axis=1)

    options = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "max_nfev": 1000}
    found = least_squares(residuals, theta, jac=jacobian, loss="huber", f_scale=DELTA, x_scale="jac", **options)
    return found.x
