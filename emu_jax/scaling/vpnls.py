"""Least squares by variable projection (VPNLS): search the two exponents, solve for E, A and B at each pair.

At given (alpha, beta) the law is linear in E, A and B, so the best of them is a non-negative least-squares problem of
three columns. What remains is a search in two dimensions: a grid, then Levenberg-Marquardt on the projected residual
with Kaufman's Jacobian (Golub and Pereyra, SIAM J. Numer. Anal. 10, 1973; for scaling laws arXiv 2603.22339). All
arrays carry a leading axis of data sets, so that a hundred bootstraps are fitted at once.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.optimize import least_squares

from emu_jax.scaling.law import Law
from emu_jax.scaling.points import Points
from emu_jax.typing import Float

EXPONENTS = np.geomspace(0.02, 2.5, 32)  # of the grid, for alpha and for beta
BOUNDS = (0.005, 4.0)
ITERATIONS = 200
TOLERANCE = 1e-13  # of a step in log(alpha), log(beta)
MOST_DAMPING = 1e6  # where no smaller step lowers the residual either


class _Columns:
    """The design matrix of a set of points; sizes are divided by their geometric means, for the condition number."""

    def __init__(self, points: Points, *, pinned: float | None) -> None:
        self.log_params, self.log_tokens = np.log(points.params), np.log(points.tokens)
        self.center = self.log_params.mean(), self.log_tokens.mean()
        self.log_params = self.log_params - self.center[0]
        self.log_tokens = self.log_tokens - self.center[1]
        self.offset = 0.0 if pinned is None else pinned
        self.free_e = pinned is None

    def design(self, exponents: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "... n k"]:
        """Return columns 1 (only with a free E), N^-alpha, D^-beta."""
        by_size = np.exp(-exponents[..., :1] * self.log_params)
        by_data = np.exp(-exponents[..., 1:] * self.log_tokens)
        columns = [by_size, by_data]
        if self.free_e:
            columns.insert(0, np.ones_like(by_size))
        return np.stack(columns, axis=-1)

    def derivatives(self, design: np.ndarray, coefficients: np.ndarray) -> Float[np.ndarray, "... n 2"]:
        """Return d(prediction) / d(alpha, beta) at fixed coefficients."""
        size, data = design.shape[-1] - 2, design.shape[-1] - 1
        return np.stack(
            [
                -self.log_params * design[..., size] * coefficients[..., None, size],
                -self.log_tokens * design[..., data] * coefficients[..., None, data],
            ],
            axis=-1,
        )

    def law(self, exponents: np.ndarray, coefficients: np.ndarray, *, flops: float) -> Law:
        """Return the law of one data set, with the sizes' means taken out again."""
        alpha, beta = map(float, exponents)
        *e, a, b = map(float, coefficients)
        return Law(
            E=e[0] if self.free_e else self.offset,
            A=a * float(np.exp(alpha * self.center[0])),
            alpha=alpha,
            B=b * float(np.exp(beta * self.center[1])),
            beta=beta,
            flops=flops,
        )


def fit_vpnls(points: Points, *, pinned: float | None = None) -> Law:
    """Fit the law to points by least squares in L; `pinned` holds E at a value."""
    return fit_vpnls_many(points, points.loss[None], np.ones((1, len(points))), pinned=pinned)[0]


def fit_vpnls_many(
    points: Points, losses: Float[np.ndarray, "s n"], weights: Float[np.ndarray, "s n"], *, pinned: float | None = None
) -> list[Law]:
    """Fit one law to each of `s` data sets that share the sizes of `points`.

    Args:
      points: sizes; its losses are not used.
      losses: L of each data set.
      weights: how often each point counts; a bootstrap's counts.
      pinned: the value of E; None fits it.
    """
    columns = _Columns(points, pinned=pinned)
    targets = losses - columns.offset
    exponents, coefficients = _refine(columns, targets, weights, _best_of_grid(columns, targets, weights))
    flops = points.flops_per_param_token
    return [columns.law(e, c, flops=flops) for e, c in zip(exponents, coefficients, strict=True)]


def fit_shared_exponents(points: Points, losses: Float[np.ndarray, "t n"]) -> list[Law]:
    """Fit one law to each of `t` losses of the same runs, with one alpha and one beta for all.

    Each loss counts relative to its own variance over the runs.
    """
    columns = _Columns(points, pinned=None)
    ones, scale = np.ones_like(losses), losses.std(axis=1, keepdims=True)

    def project(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        design = columns.design(np.exp(logs)[None])
        return _project(np.broadcast_to(design, (len(losses), *design.shape[1:])), losses, ones)

    grid = _grid()
    start = np.log(grid[np.argmin((_grid_residuals(columns, losses, ones, grid) / scale**2).sum(axis=0))])
    tolerances = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)
    found = least_squares(lambda logs: (project(logs)[1] / scale).ravel(), start, jac="3-point", **tolerances)
    return [columns.law(np.exp(found.x), c, flops=points.flops_per_param_token) for c in project(found.x)[0]]


def _grid() -> Float[np.ndarray, "g 2"]:
    return np.stack(np.meshgrid(EXPONENTS, EXPONENTS, indexing="ij"), axis=-1).reshape(-1, 2)


def _best_of_grid(columns: _Columns, targets: np.ndarray, weights: np.ndarray) -> Float[np.ndarray, "s 2"]:
    grid = _grid()
    return grid[np.argmin(_grid_residuals(columns, targets, weights, grid), axis=1)]


def _grid_residuals(
    columns: _Columns, targets: np.ndarray, weights: np.ndarray, grid: np.ndarray
) -> Float[np.ndarray, "s g"]:
    """Return the weighted sum of squares that is left at each pair of exponents."""
    design = columns.design(grid)  # [g n k]
    k = design.shape[-1]
    pairs = np.stack([design[..., i] * design[..., j] for i in range(k) for j in range(k)], axis=-1)
    gram = np.einsum("sn,gnp->sgp", weights, pairs, optimize=True).reshape(len(weights), len(grid), k, k)
    right = np.einsum("sn,gnk->sgk", weights * targets, design, optimize=True)
    total = (weights * targets**2).sum(axis=1)[:, None]
    _, explained = _non_negative(gram, right)
    return total - explained


def _non_negative(gram: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve min |y - X c|, c >= 0, from X'X and X'y: the best feasible one of the 2^k - 1 supports.

    Returns:
      c [... k] and the part of y'y that it explains [...].
    """
    k = right.shape[-1]
    best = np.zeros_like(right)
    explained = np.zeros(right.shape[:-1])
    for size in range(1, k + 1):
        for support in map(list, itertools.combinations(range(k), size)):
            part = gram[..., support, :][..., support]
            ridge = 1e-15 * np.einsum("...ii->...", part)[..., None, None] * np.eye(size)
            solved = np.linalg.solve(part + ridge, right[..., support, None])[..., 0]
            gain = 2 * (solved * right[..., support]).sum(-1) - np.einsum("...i,...ij,...j->...", solved, part, solved)
            better = (solved >= 0).all(-1) & (gain > explained)
            candidate = np.zeros_like(right)
            candidate[..., support] = solved
            best = np.where(better[..., None], candidate, best)
            explained = np.where(better, gain, explained)
    return best, explained


def _project(design: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best coefficients [s k] and the residuals [s n]."""
    weighted = design * weights[..., None]
    gram = np.einsum("snk,snl->skl", weighted, design)
    coefficients, _ = _non_negative(gram, np.einsum("snk,sn->sk", weighted, targets))
    # One step of refinement: the normal equations lose half of the digits.
    residual = targets - np.einsum("snk,sk->sn", design, coefficients)
    active = coefficients > 0
    masked = np.where(active[:, :, None] & active[:, None, :], gram, np.eye(design.shape[-1]))
    right = np.where(active, np.einsum("snk,sn->sk", weighted, residual), 0.0)
    coefficients = np.maximum(coefficients + np.linalg.solve(masked, right[..., None])[..., 0], 0.0)
    return coefficients, targets - np.einsum("snk,sk->sn", design, coefficients)


def _refine(
    columns: _Columns, targets: np.ndarray, weights: np.ndarray, exponents: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Run Levenberg-Marquardt in log(alpha), log(beta) from the grid's best; data sets leave when they are done."""
    logs, damping = np.log(exponents), np.full(len(targets), 1e-3)
    coefficients, residual = _project(columns.design(np.exp(logs)), targets, weights)
    cost = (weights * residual**2).sum(axis=1)
    running = np.arange(len(targets))
    for _ in range(ITERATIONS):
        y, w, at = targets[running], weights[running], logs[running]
        design = columns.design(np.exp(at))
        step = _step(columns, design, coefficients[running], residual[running], w, np.exp(at), damping[running])
        tried = np.clip(at + step, np.log(BOUNDS[0]), np.log(BOUNDS[1]))
        found, left = _project(columns.design(np.exp(tried)), y, w)
        lower = (w * left**2).sum(axis=1)
        better = lower < cost[running]
        moved = np.abs(tried - at).max(axis=1)
        accepted = running[better]
        logs[accepted], coefficients[accepted] = tried[better], found[better]
        residual[accepted], cost[accepted] = left[better], lower[better]
        damping[running] = np.clip(np.where(better, damping[running] * 0.2, damping[running] * 6), 1e-14, None)
        running = running[(moved > TOLERANCE) & (damping[running] < MOST_DAMPING)]
        if not len(running):
            break
    return np.exp(logs), coefficients


def _step(
    columns: _Columns,
    design: np.ndarray,
    coefficients: np.ndarray,
    residual: np.ndarray,
    weights: np.ndarray,
    exponents: np.ndarray,
    damping: np.ndarray,
) -> Float[np.ndarray, "s 2"]:
    """Return the damped Gauss-Newton step, at most half a unit of log."""
    slope = columns.derivatives(design, coefficients) * exponents[:, None, :]
    slope = slope - _onto_active(design, coefficients, weights, slope)
    gram = np.einsum("sn,sni,snj->sij", weights, slope, slope)
    right = np.einsum("sn,sni->si", weights * residual, slope)
    diagonal = np.einsum("sii->si", gram)
    damped = gram + np.eye(2) * (damping[:, None] * diagonal + 1e-300)[:, :, None]
    return np.clip(np.linalg.solve(damped, right[..., None])[..., 0], -0.5, 0.5)


def _onto_active(design: np.ndarray, coefficients: np.ndarray, weights: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Project `vectors` [s n 2] onto the columns whose coefficient is not zero."""
    active = design * (coefficients > 0)[:, None, :]
    gram = np.einsum("sn,snk,snl->skl", weights, active, active)
    gram = gram + np.eye(gram.shape[-1]) * np.where(coefficients > 0, 0.0, 1.0)[:, :, None]
    right = np.einsum("sn,snk,sni->ski", weights, active, vectors)
    return np.einsum("snk,ski->sni", active, np.linalg.solve(gram, right))
