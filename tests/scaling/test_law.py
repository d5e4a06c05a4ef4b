"""The law's closed forms against direct minimization."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from emu_jax.scaling.law import law_from_power_laws
from tests.scaling.surfaces import FIELDS, SURFACES


@pytest.mark.parametrize("name", SURFACES)
def test_the_optimum_is_the_lowest_loss_of_a_budget(name):
    law, budget = SURFACES[name], 1e21
    params, tokens = law.optimum(budget)
    assert params * tokens * law.flops == pytest.approx(budget, rel=1e-12)
    along = lambda log_n: float(law.loss(np.exp(log_n), budget / law.flops / np.exp(log_n)))
    found = minimize_scalar(along, bracket=(np.log(params) - 1, np.log(params) + 1), options={"xtol": 1e-12})
    assert found.x == pytest.approx(float(np.log(params)), abs=1e-6)
    assert float(law.frontier.loss(budget)) == pytest.approx(found.fun, rel=1e-12)


def test_the_published_chinchilla_exponents_follow():
    law = SURFACES["chinchilla"]
    assert (round(law.a, 2), round(law.b, 2)) == (0.45, 0.55)


@pytest.mark.parametrize("name", SURFACES)
def test_a_law_comes_back_from_its_optima_and_its_frontier(name):
    law = SURFACES[name]
    size = (float(law.optimum(1.0)[0]), law.a)
    found = law_from_power_laws(size=size, frontier=law.frontier, flops=law.flops)
    for field in FIELDS:
        assert getattr(found, field) == pytest.approx(getattr(law, field), rel=1e-9)
