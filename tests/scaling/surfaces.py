"""Published loss surfaces, and IsoFLOP grids on them."""

from __future__ import annotations

import numpy as np

from emu_jax.scaling.law import Law
from emu_jax.scaling.points import Points

SURFACES = {
    "chinchilla": Law(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28),  # arXiv 2203.15556, appendix D
    "soda": Law(E=3.169, A=215886.0, alpha=0.684, B=4750.0, beta=0.439),
    "sparse_nmm": Law(E=2.158, A=381773.0, alpha=0.710, B=4659.0, beta=0.372),  # arXiv 2504.07951
}
BUDGETS = tuple(np.geomspace(6e18, 3e21, 7))
FIELDS = ("E", "A", "alpha", "B", "beta")


def isoflop_grid(law: Law, *, budgets=BUDGETS, sizes: int = 10, span: float = 8.0, drift: float = 1.0) -> Points:
    """Noise-free points: for each budget, `sizes` models from 1/span to span times the optimum.

    `drift` moves the grid's center by this factor from the first budget to the last.
    """
    rows = []
    for number, budget in enumerate(budgets):
        center = law.optimum(budget)[0] * drift ** (number / max(len(budgets) - 1, 1))
        for factor in np.geomspace(1 / span, span, sizes):
            params = float(center * factor)
            rows.append((params, budget / law.flops / params, budget))
    params, tokens, budget = np.array(rows).T
    return Points(params, tokens, law.loss(params, tokens), budget)


def noisy(points: Points, *, deviation: float, seed: int) -> Points:
    """The same points with log-normal noise."""
    rng = np.random.default_rng(seed)
    return points.with_loss(points.loss * np.exp(deviation * rng.standard_normal(len(points))))
