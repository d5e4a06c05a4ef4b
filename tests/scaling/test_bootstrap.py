"""Intervals: their shape here, their coverage by simulation in a slow test."""

import numpy as np
import pytest

from emu_jax.scaling.bootstrap import draw_counts, interval
from emu_jax.scaling.vpnls import fit_vpnls_many
from tests.scaling.surfaces import SURFACES, isoflop_grid, noisy


def test_every_sample_has_as_many_points():
    counts = draw_counts(37, samples=20, seed=0)
    assert counts.shape == (20, 37)
    assert (counts.sum(axis=1) == 37).all()
    assert len({tuple(row) for row in counts}) == 20


def test_an_interval_of_many_points_is_the_percentiles_and_of_few_is_wider():
    values = np.random.default_rng(0).standard_normal(20_000)
    many = interval(values, level=0.9, num_points=100_000)
    np.testing.assert_allclose(many, np.quantile(values, [0.05, 0.95]), atol=2e-3)
    few = interval(values, level=0.9, num_points=12)
    assert few[0] < many[0]
    assert few[1] > many[1]
    assert interval(np.array([1.0, np.nan, 3.0]), level=0.5, num_points=100) == pytest.approx((1.5, 2.5), abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "budgets", "sizes"), [("chinchilla", 6, 8), ("sparse_nmm", 6, 8), ("chinchilla", 5, 6)]
)
def test_intervals_cover_the_truth(name, budgets, sizes):
    """90% intervals of 100 bootstraps, 100 simulated studies with 0.5% noise; chance alone gives 0.90 +- 0.03."""
    law = SURFACES[name]
    points = isoflop_grid(law, budgets=np.geomspace(6e18, 3e21, budgets), sizes=sizes, span=6.0)
    hits = dict.fromkeys(("E", "alpha", "beta", "a"), 0)
    for seed in range(100):
        table = noisy(points, deviation=0.005, seed=seed)
        counts = draw_counts(len(points), samples=100, seed=seed).astype(float)
        laws = fit_vpnls_many(points, np.tile(table.loss, (100, 1)), counts)
        for field in hits:
            low, high = interval(np.array([getattr(one, field) for one in laws]), level=0.9, num_points=len(points))
            hits[field] += low <= getattr(law, field) <= high
    print(name, budgets * sizes, {field: hit / 100 for field, hit in hits.items()})
    assert min(hits.values()) >= 80
    assert max(hits.values()) <= 99
