"""Approaches 1 and 2 of arXiv 2203.15556: the best run of each budget, and the minimum of a parabola per budget.

Both give N* = n C^a and D* = d C^b by straight lines in log space. A frontier L(C) = E + K / C^gamma through their
lowest losses then leaves one law (`law_from_power_laws`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.optimize import minimize_scalar

from emu_jax.scaling.law import Frontier, Law, law_from_power_laws
from emu_jax.scaling.points import Points
from emu_jax.typing import Float

FEWEST_CURVES = 2
FEWEST_ON_PARABOLA = 4
FEWEST_FOR_FRONTIER = 4


@dataclasses.dataclass(frozen=True)
class Minimum:
    """The best split of one budget, as read from its runs.

    Attributes:
      loss: at the minimum.
      inside: the minimum is between the smallest and the largest model of the curve.
      offset: ln(minimum / center of the curve's sizes), 0 for a centered grid.
    """

    budget: float
    params: float
    tokens: float
    loss: float
    inside: bool = True
    offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class PowerLaws:
    """The outcome of Approach 1 or 2.

    Attributes:
      minima: one for each usable budget.
      size: (n, a) of N* = n C^a.
      data: (d, b) of D* = d C^b.
      frontier: the loss at the minima against C; None with too few budgets.
      law: the one law with these optima and this frontier; None where there is none.
    """

    minima: tuple[Minimum, ...]
    size: tuple[float, float]
    data: tuple[float, float]
    frontier: Frontier | None
    law: Law | None

    def optimum(self, budget: float) -> tuple[float, float]:
        """Return (N*, D*)."""
        return self.size[0] * budget ** self.size[1], self.data[0] * budget ** self.data[1]


def fit_envelope(points: Points, *, pinned: float | None = None) -> PowerLaws | None:
    """Fit Approach 1: for each budget the run with the lowest loss. None with fewer than two budgets."""
    minima = []
    for budget, curve in points.curves():
        best = int(np.argmin(curve.loss))
        inside = curve.params.min() < curve.params[best] < curve.params.max()
        minima.append(Minimum(budget, curve.params[best], curve.tokens[best], curve.loss[best], bool(inside)))
    return _power_laws(minima, flops=points.flops_per_param_token, pinned=pinned)


def fit_parabolas(points: Points, *, pinned: float | None = None) -> PowerLaws | None:
    """Fit Approach 2: a parabola in ln N for each budget. None where fewer than two budgets have a minimum.

    D* is the minimum of a second parabola, in ln D.
    """
    minima = []
    for budget, curve in points.curves():
        size, data = parabola(curve.params, curve.loss), parabola(curve.tokens, curve.loss)
        if size is None or data is None:
            continue
        middle = np.log(curve.params).mean()
        minima.append(
            Minimum(
                budget,
                params=float(np.exp(size[0])),
                tokens=float(np.exp(data[0])),
                loss=size[1],
                inside=bool(np.log(curve.params.min()) < size[0] < np.log(curve.params.max())),
                offset=float(size[0] - middle),
            )
        )
    return _power_laws(minima, flops=points.flops_per_param_token, pinned=pinned)


def parabola(sizes: np.ndarray, loss: np.ndarray) -> tuple[float, float, np.ndarray] | None:
    """Fit loss = c2 x^2 + c1 x + c0 in x = ln(size).

    Returns:
      (x of the minimum, loss there, polynomial in x for np.polyval); None with too few sizes or no minimum.
    """
    x = np.log(sizes)
    if len(np.unique(np.round(x, 6))) < FEWEST_ON_PARABOLA:
        return None
    center = x.mean()
    c2, c1, c0 = np.polyfit(x - center, loss, 2)
    if c2 <= 0:
        return None
    at = -c1 / (2 * c2)
    shifted = np.array([c2, c1 - 2 * c2 * center, c0 - c1 * center + c2 * center**2])
    return float(at + center), float(c0 - c1**2 / (4 * c2)), shifted


def fit_frontier(
    budgets: Float[np.ndarray, "n"], losses: Float[np.ndarray, "n"], *, pinned: float | None = None
) -> Frontier:
    """Fit L(C) = E + K / C^gamma by least squares; E and K are solved for, gamma is searched."""
    logs = np.log(budgets)
    center = logs.mean()

    def solve(gamma: float) -> tuple[float, float, float]:
        column = np.exp(-gamma * (logs - center))
        if pinned is not None:
            k = float(column @ (losses - pinned) / (column @ column))
            return float(np.sum((losses - pinned - k * column) ** 2)), pinned, k
        spread = column - column.mean()
        k = float(spread @ (losses - losses.mean()) / (spread @ spread))
        e = float(losses.mean() - k * column.mean())
        if e < 0:
            e, k = 0.0, float(column @ losses / (column @ column))
        return float(np.sum((losses - e - k * column) ** 2)), e, k

    grid = np.geomspace(1e-3, 2.0, 200)
    best = int(np.argmin([solve(gamma)[0] for gamma in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    gamma = float(
        minimize_scalar(lambda g: solve(g)[0], bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    )
    _, e, k = solve(gamma)
    return Frontier(e, float(k * np.exp(gamma * center)), gamma)


def fit_kaplan(minima: tuple[Minimum, ...]) -> tuple[float, float]:
    """Fit L = (C0 / C)^gamma, no floor (arXiv 2001.08361, eq. 1.3), to the lowest losses; returns (C0, gamma)."""
    slope, intercept = np.polyfit(np.log([m.budget for m in minima]), np.log([m.loss for m in minima]), 1)
    return float(np.exp(-intercept / slope)), float(-slope)


def _power_laws(minima: list[Minimum], *, flops: float, pinned: float | None) -> PowerLaws | None:
    if len(minima) < FEWEST_CURVES:
        return None
    logs = np.log([m.budget for m in minima])
    size, data = (
        (float(np.exp(intercept)), float(slope))
        for slope, intercept in (
            np.polyfit(logs, np.log([getattr(m, name) for m in minima]), 1) for name in ("params", "tokens")
        )
    )
    frontier = law = None
    if len(minima) >= FEWEST_FOR_FRONTIER:
        frontier = fit_frontier(np.exp(logs), np.array([m.loss for m in minima]), pinned=pinned)
        law = law_from_power_laws(size=size, frontier=frontier, flops=flops)
    return PowerLaws(tuple(minima), size, data, frontier, law)


def parabola_warnings(points: Points, fit: PowerLaws, law: Law, *, target: float) -> list[str]:
    """Return what biases Approach 2 on this grid (arXiv 2603.22339), and by how much.

    The size of the bias is measured: Approach 2 is run again on the losses that `law` gives at the same sizes, without
    noise, and compared with the exact optimum of `law`, also at the budget `target`.
    """
    found = []
    outside = [m.budget for m in fit.minima if not m.inside]
    if outside:
        budgets = ", ".join(f"{budget:.2g}" for budget in outside)
        found.append(f"the minimum is outside of the sizes that were run at C = {budgets}: these are extrapolated")
    offsets = np.array([m.offset for m in fit.minima])
    if np.abs(offsets).max() > OFF_CENTER:
        found.append(
            f"the grid is off-center: minima are at {np.exp(offsets.min()):.2g} to {np.exp(offsets.max()):.2g} times "
            "the center of their sizes"
        )
    skew = abs(law.alpha - law.beta) / (law.alpha + law.beta)
    if skew > UNEQUAL:
        found.append(
            f"the exponents are unequal (alpha {law.alpha:.3g}, beta {law.beta:.3g}): a parabola's minimum is not the "
            "curve's"
        )
    if not law.has_optimum:
        return found
    exact = points.with_loss(law.loss(points.params, points.tokens))
    noise_free = fit_parabolas(exact)
    if noise_free is not None:
        shift = noise_free.size[1] - law.a
        ratio = noise_free.optimum(target)[0] / float(law.optimum(target)[0])
        if abs(shift) > BIASED_EXPONENT or abs(np.log(ratio)) > BIASED_OPTIMUM:
            found.append(
                f"Approach 2 on noise-free losses of the VPNLS law at these sizes gives a = {noise_free.size[1]:.4f} "
                f"instead of {law.a:.4f}, and {ratio:.3g} times the optimal N at C = {target:.2g}"
            )
    return found


OFF_CENTER = np.log(1.5)
UNEQUAL = 0.1  # |alpha - beta| / (alpha + beta)
BIASED_EXPONENT = 0.005
BIASED_OPTIMUM = 0.05  # in ln N
