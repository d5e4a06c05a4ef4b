"""Laws are recovered from points on known surfaces."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_jax.scaling.fit import FitOptions, fit_points, to_json
from emu_jax.scaling.huber import fit_huber, fit_huber_many
from emu_jax.scaling.isoflop import fit_envelope, fit_frontier, fit_kaplan, fit_parabolas, parabola_warnings
from emu_jax.scaling.law import Law
from emu_jax.scaling.points import Points
from emu_jax.scaling.vpnls import fit_shared_exponents, fit_vpnls, fit_vpnls_many
from tests.scaling.surfaces import FIELDS, SURFACES, isoflop_grid, noisy


def assert_same(found: Law, law: Law, *, rel: float) -> None:
    for field in FIELDS:
        assert getattr(found, field) == pytest.approx(getattr(law, field), rel=rel), field


@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize("fit", [fit_vpnls, fit_huber])
@pytest.mark.parametrize("grid", [{}, {"span": 3.0, "sizes": 6, "drift": 3.0}])
def test_published_surfaces_come_back(name, fit, grid):
    assert_same(fit(isoflop_grid(SURFACES[name], **grid)), SURFACES[name], rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    alpha=st.floats(0.15, 0.9),
    beta=st.floats(0.15, 0.9),
    floor=st.floats(0.05, 4.0),
    size_term=st.floats(0.1, 3.0),
    data_term=st.floats(0.1, 3.0),
)
def test_any_surface_comes_back_by_vpnls(alpha, beta, floor, size_term, data_term):
    """Terms are given at N = 1e9 and D = 2e10, so that both matter on the grid."""
    law = Law(floor, size_term * 1e9**alpha, alpha, data_term * 2e10**beta, beta)
    sizes, tokens = np.meshgrid(np.geomspace(1e8, 1e10, 7), np.geomspace(2e9, 2e11, 7))
    params, tokens = sizes.ravel(), tokens.ravel()
    points = Points(params, tokens, law.loss(params, tokens), 6 * params * tokens)
    assert_same(fit_vpnls(points), law, rel=1e-6)


@pytest.mark.parametrize("fit", [fit_vpnls, fit_huber])
def test_a_pinned_floor_is_kept_and_the_rest_comes_back(fit):
    law = SURFACES["soda"]
    assert_same(fit(isoflop_grid(law), pinned=law.E), law, rel=1e-6)
    wrong = fit(isoflop_grid(law), pinned=2.5)
    assert pytest.approx(2.5, rel=1e-12) == wrong.E
    assert wrong.alpha < law.alpha  # a floor that is too low is made up for by a slower fall


def test_a_floor_of_zero_can_be_pinned():
    law = dataclasses.replace(SURFACES["chinchilla"], E=0.0)
    for fit in (fit_vpnls, fit_huber):
        found = fit(isoflop_grid(law), pinned=0.0)
        assert found.alpha == pytest.approx(law.alpha, rel=1e-6)
        assert pytest.approx(law.B, rel=1e-6) == found.B


def test_negative_terms_are_never_fitted():
    """Losses that rise with D leave B at 0 instead of below it."""
    law = SURFACES["chinchilla"]
    points = isoflop_grid(law)
    rising = points.with_loss(1 + 400 / points.params**0.3 + 1e-12 * points.tokens**0.5)
    found = fit_vpnls(rising)
    assert min(found.E, found.A, found.B) >= 0


def test_many_data_sets_at_once_are_each_fitted_as_on_their_own():
    points = isoflop_grid(SURFACES["chinchilla"])
    tables = [noisy(points, deviation=0.003, seed=seed) for seed in range(4)]
    together = fit_vpnls_many(points, np.stack([table.loss for table in tables]), np.ones((4, len(points))))
    for law, table in zip(together, tables, strict=True):
        assert_same(law, fit_vpnls(table), rel=1e-6)


@pytest.mark.parametrize("method", ["vpnls", "huber"])
def test_a_bootstrap_sample_is_fitted_as_its_repeated_points(method):
    points = noisy(isoflop_grid(SURFACES["chinchilla"]), deviation=0.003, seed=1)
    counts = np.random.default_rng(0).multinomial(len(points), np.full(len(points), 1 / len(points)), size=1)
    sample = points[np.repeat(np.arange(len(points)), counts[0])]
    if method == "vpnls":
        found, expected = fit_vpnls_many(points, points.loss[None], counts.astype(float))[0], fit_vpnls(sample)
    else:
        start = fit_huber(points)
        found, expected = fit_huber_many(points, counts, starts=[start])[0], fit_huber(sample)
    assert found.alpha == pytest.approx(expected.alpha, rel=1e-4)
    assert found.beta == pytest.approx(expected.beta, rel=1e-4)


def test_approach_3_ignores_outliers_that_move_least_squares():
    law = SURFACES["chinchilla"]
    points = noisy(isoflop_grid(law, sizes=12), deviation=0.001, seed=0)
    loss = points.loss.copy()
    loss[[3, 40, 70]] *= 1.3
    spoiled = points.with_loss(loss)
    robust, squares = fit_huber(spoiled), fit_vpnls(spoiled)
    assert abs(robust.a - law.a) < 0.01 < abs(squares.a - law.a)


def test_shared_exponents_of_two_losses():
    one, two = SURFACES["soda"], dataclasses.replace(SURFACES["soda"], E=0.2, A=9e4, B=700.0)
    points = isoflop_grid(one)
    losses = np.stack([points.loss, two.loss(points.params, points.tokens)])
    for found, law in zip(fit_shared_exponents(points, losses), (one, two), strict=True):
        assert_same(found, law, rel=1e-5)


def test_approaches_1_and_2_find_the_exponents_on_centered_grids():
    for law in SURFACES.values():
        points = isoflop_grid(law, sizes=15, span=2.0)
        for fit in (fit_envelope, fit_parabolas):
            found = fit(points)
            assert found.size[1] == pytest.approx(law.a, abs=2e-3)
            assert found.data[1] == pytest.approx(law.b, abs=2e-3)
            assert pytest.approx(law.E, abs=0.02) == found.law.E


def test_a_frontier_comes_back():
    frontier = SURFACES["chinchilla"].frontier
    budgets = np.geomspace(1e18, 1e22, 9)
    found = fit_frontier(budgets, frontier.loss(budgets))
    assert pytest.approx(frontier.E, rel=1e-6) == found.E
    assert found.gamma == pytest.approx(frontier.gamma, rel=1e-6)


def test_the_power_law_without_a_floor():
    law = Law(E=1e-9, A=100.0, alpha=0.2, B=100.0, beta=0.2)
    c0, gamma = fit_kaplan(fit_envelope(isoflop_grid(law, sizes=9)).minima)
    assert gamma == pytest.approx(0.1, abs=1e-3)
    budget = 1e20
    assert (c0 / budget) ** gamma == pytest.approx(float(law.frontier.loss(budget)), rel=1e-3)


def test_approach_2_is_warned_of_where_it_is_biased():
    equal = Law(E=1.7, A=400.0, alpha=0.3, B=400.0, beta=0.3)
    fair = isoflop_grid(equal, sizes=11, span=2.0)
    assert parabola_warnings(fair, fit_parabolas(fair), equal, target=1e23) == []
    unequal = SURFACES["sparse_nmm"]
    wide = isoflop_grid(unequal, span=16.0)
    text = " ".join(parabola_warnings(wide, fit_parabolas(wide), unequal, target=1e23))
    assert "unequal" in text
    assert "times the optimal N" in text
    drifting = isoflop_grid(equal, span=4.0, drift=8.0)
    found = parabola_warnings(drifting, fit_parabolas(drifting), equal, target=1e23)
    assert any("off-center" in line for line in found)
    assert any("instead of 0.5000" in line for line in found)


def test_the_result_has_every_approach_with_intervals_and_predicts_the_largest_budget():
    law = SURFACES["chinchilla"]
    points = noisy(isoflop_grid(law), deviation=0.002, seed=3)
    found = to_json(fit_points(points, FitOptions(bootstraps=40, budgets=(1e23,))))
    for name in ("vpnls", "approach1", "approach2", "approach3"):
        fit = found[name]
        assert fit["a"] == pytest.approx(law.a, abs=0.08)
        low, high = fit["intervals"]["a"]
        assert low < high
        assert fit["optimal"][0]["budget"] == 1e23
    assert found["vpnls"]["alpha"] == pytest.approx(law.alpha, abs=0.05)
    held_out = found["held_out"]
    assert held_out["budget"] == pytest.approx(3e21)
    assert len(held_out["points"]) == 10
    assert held_out["fraction_inside"] >= 0.7
    assert abs(held_out["mean_log_error"]) < 0.01
