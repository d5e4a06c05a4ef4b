"""Losses on held-out batches: exact means over batches, the same noise in each evaluation, on any mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.sharding.specs import unbox
from emu_jax.training.evaluation import EvaluationConfig, HeldOutLosses, HeldOutSet, TaskConfig, held_out_losses
from tests.training.test_emu_step import batch, stage


def two_batches():
    first = batch()
    second = {name: np.roll(value, 3, axis=0) for name, value in first.items()}
    second["text_loss_mask"] = np.where(np.arange(24) < 9, second["text_loss_mask"], 0).astype(
        first["text_loss_mask"].dtype
    )
    return [first, second]


@pytest.fixture(scope="module")
def params():
    return unbox(jax.jit(stage().init)(jax.random.key(1)))


def test_means_are_over_all_batches(params):
    trained, batches = stage(regression_weight=0.5), two_batches()
    held_out = HeldOutLosses(trained, {"new": batches, "first": batches[:1]}, mesh=MeshConfig(2, 2, 2))
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2))):
        metrics = held_out(3, params)
        again = held_out(7, params)
    assert metrics == again
    on_device = [jax.tree.map(jnp.asarray, one) for one in batches]
    for name, some in (("new", on_device), ("first", on_device[:1])):
        sums = [trained.losses(params, one, jax.random.key(9), deterministic=True).sums for one in some]
        counts = [trained.loss_denominators(one) for one in some]
        for term in ("text", "regression"):
            mean = sum(float(s[term]) for s in sums) / sum(float(c[term]) for c in counts)
            assert metrics[f"{name}/{term}"] == pytest.approx(mean, rel=2e-5)
        expected = metrics[f"{name}/text"] + 0.5 * metrics[f"{name}/regression"]
        assert metrics[f"{name}/loss"] == pytest.approx(expected)


def test_sets_are_read_once_and_must_be_large_enough():
    config = EvaluationConfig(sets=(HeldOutSet("a", name="first"), HeldOutSet("b")), batches=2)
    read = []

    def load(one):
        read.append(one.path)
        return iter(two_batches())

    (held_out,) = held_out_losses(config, stage(), load, mesh=MeshConfig())
    assert read == ["a", "b"]
    assert isinstance(held_out, HeldOutLosses)
    assert held_out_losses(EvaluationConfig(), stage(), load, mesh=MeshConfig()) == []
    with pytest.raises(UserError, match=r"a has fewer than evaluation\.batches=2 batches"):
        held_out_losses(config, stage(), lambda one: iter(two_batches()[:1]), mesh=MeshConfig())
    twice = EvaluationConfig(sets=(HeldOutSet("a"), HeldOutSet("b", name="a")))
    with pytest.raises(UserError, match="same name twice"):
        held_out_losses(twice, stage(), load, mesh=MeshConfig())


def test_tasks_require_their_data_and_an_emu():
    with pytest.raises(UserError, match=r"require evaluation\.data"):
        EvaluationConfig(tasks=(TaskConfig("vqav2"),))
    with pytest.raises(UserError, match="The stage vae has no Emu"):
        EvaluationConfig(tasks=(TaskConfig("vqav2"),), data="x").check_no_tasks("vae")
