"""The train step and its state, on the toy stage."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.training.config import OptimizerConfig
from emu_jax.training.optimizer import make_optimizer
from emu_jax.training.partition import flatten
from emu_jax.training.prefetch import batch_shardings
from emu_jax.training.state import abstract_state, create_state, describe, parameter_table
from emu_jax.training.step import make_train_step
from tests.training.toy import ToyData, ToyStage

CONFIG = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, clip_norm=0.5)
MESHES = {
    "one": (MeshConfig(1, 1, 1), 1),
    "data": (MeshConfig(8, 1, 1), 8),
    "all": (MeshConfig(2, 2, 2), 8),
    "fsdp-tensor": (MeshConfig(1, 4, 2), 8),
    "tensor": (MeshConfig(1, 1, 8), 8),
}


def run(stage, *, mesh="one", steps=1, accumulation=1, config=CONFIG, data=None):
    """Return (state, metrics of the last step, the jitted step) after some steps on a mesh."""
    chosen, count = MESHES[mesh]
    devices = make_mesh(chosen, devices=jax.devices()[:count])
    data = data or ToyData(stage)
    optimizer = make_optimizer(config, steps=100)
    with jax.set_mesh(devices):
        state = create_state(stage, optimizer, config=config, mesh=devices, seed=0)
        step = jax.jit(make_train_step(stage, config=config, steps=100, accumulation=accumulation), donate_argnums=0)
        metrics = None
        for _ in range(steps):
            batch = jax.device_put(next(data), batch_shardings(stage.batch_spec(), mesh=devices))
            state, metrics = step(state, batch)
    return state, metrics, step


def assert_same(one, other, *, rtol, atol):
    for path, value in flatten(one).items():
        np.testing.assert_allclose(value, flatten(other)[path], rtol=rtol, atol=atol, err_msg=path)


@pytest.fixture(scope="module")
def reference():
    """Three steps on one device, each batch in one piece."""
    return run(ToyStage(), steps=3)


@pytest.mark.parametrize("accumulation", [4, 16])
def test_microbatches_equal_the_full_batch(reference, accumulation):
    expected, metrics, _ = reference
    split, other, _ = run(ToyStage(), steps=3, accumulation=accumulation)
    assert_same(expected.params, split.params, rtol=2e-6, atol=2e-7)
    for name in metrics.names:
        np.testing.assert_allclose(other.value(name), metrics.value(name), rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("mesh", ["data", "all", "fsdp-tensor", "tensor"])
def test_every_mesh_equals_one_device(reference, mesh):
    expected, metrics, _ = reference
    sharded, other, _ = run(ToyStage(), mesh=mesh, steps=3, accumulation=2)
    assert_same(expected.params, sharded.params, rtol=5e-6, atol=5e-7)
    np.testing.assert_allclose(other.value("gradient_norm"), metrics.value("gradient_norm"), rtol=1e-5)


def test_the_state_is_created_in_its_shards():
    mesh = make_mesh(MeshConfig(1, 4, 2))
    stage, optimizer = ToyStage(), make_optimizer(CONFIG, steps=10)
    with jax.set_mesh(mesh):
        abstract = abstract_state(stage, optimizer, config=CONFIG, mesh=mesh)
        state = create_state(stage, optimizer, config=CONFIG, mesh=mesh, seed=0)
    kernel = state.params["tower"]["kernel"]
    assert kernel.sharding == abstract.params["tower"]["kernel"].sharding
    adam = state.opt_state[0]
    for array in (kernel, adam.mu["tower"]["kernel"], adam.nu["tower"]["kernel"]):
        assert {shard.data.size * 8 for shard in array.addressable_shards} == {array.size}


def test_initial_parameters_replace_new_ones_and_the_others_do_not_change():
    config = dataclasses.replace(CONFIG, ema_decay=0.9)
    mesh = make_mesh(MeshConfig(1, 4, 2))
    stage, optimizer = ToyStage(), make_optimizer(config, steps=10)
    with jax.set_mesh(mesh):
        new = create_state(stage, optimizer, config=config, mesh=mesh, seed=0)
        kernel = new.params["tower"]["kernel"]
        initial = {"tower": {"kernel": jax.device_put(jnp.ones_like(kernel), kernel.sharding)}}
        state = create_state(stage, optimizer, config=config, mesh=mesh, seed=0, initial=initial)
    expected = flatten(new.params) | {"tower/kernel": np.ones(kernel.shape)}
    for tree in (state.params, state.ema):
        assert jax.tree.structure(tree) == jax.tree.structure(new.params)
        for path, value in flatten(tree).items():
            np.testing.assert_array_equal(value, expected[path], err_msg=path)
    assert state.params["tower"]["kernel"].sharding == kernel.sharding


def test_frozen_parameters_have_no_optimizer_state_and_do_not_change():
    stage = ToyStage(trainable=(r"^head/",))
    before, _, _ = run(stage, steps=0)
    after, metrics, _ = run(stage, steps=2)
    assert_same(before.params["tower"], after.params["tower"], rtol=0, atol=0)
    assert float(jnp.abs(before.params["head"]["kernel"] - after.params["head"]["kernel"]).max()) > 0
    assert set(after.opt_state[0].mu) == {"head"}
    assert not any(name.startswith("gradient_norm/tower") for name in metrics.names)


def test_the_gradient_is_clipped_and_its_norm_is_logged_before_clipping():
    _, metrics, _ = run(ToyStage(), steps=1)
    _, unclipped, _ = run(ToyStage(), steps=1, config=dataclasses.replace(CONFIG, clip_norm=None))
    assert metrics.value("gradient_norm") == unclipped.value("gradient_norm") > CONFIG.clip_norm
    parts = [metrics.value(f"gradient_norm/{part}") for part in ("tower", "head")]
    np.testing.assert_allclose(np.hypot(*parts), metrics.value("gradient_norm"), rtol=1e-5)


def test_steps_with_a_non_finite_gradient_are_skipped_and_counted():
    stage = ToyStage(nan_above=50.0)
    clean, _, _ = run(stage, steps=2)
    state, metrics, _ = run(stage, steps=4, data=ToyData(stage, bad=range(2, 4)))
    assert_same(clean.params, state.params, rtol=0, atol=0)
    assert_same(clean.opt_state[0].nu, state.opt_state[0].nu, rtol=0, atol=0)
    assert (int(state.step), int(state.skipped), int(state.skipped_in_row)) == (4, 2, 2)
    assert metrics.value("skipped") == 1.0
    assert np.isnan(metrics.value("loss"))  # nothing was counted
    recovered, _, _ = run(stage, steps=5, data=ToyData(stage, bad=range(2, 4)))
    assert (int(recovered.skipped), int(recovered.skipped_in_row)) == (2, 0)


def test_the_moving_average_covers_the_trainable_parameters():
    config = dataclasses.replace(CONFIG, ema_decay=0.75)
    stage = ToyStage(trainable=(r"^head/",))
    start, _, _ = run(stage, steps=0, config=config)
    one, _, _ = run(stage, steps=1, config=config)
    assert set(one.ema) == {"head"}
    expected = 0.75 * start.params["head"]["kernel"] + 0.25 * one.params["head"]["kernel"]
    np.testing.assert_allclose(one.ema["head"]["kernel"], expected, rtol=1e-6)


def test_a_loss_term_without_predictions_is_zero_and_not_nan():
    stage = ToyStage()
    data = ToyData(stage)
    data.batch = lambda index: {**ToyData.batch(data, index), "mask": np.zeros(16, np.float32)}
    state, metrics, _ = run(stage, steps=1, data=data)
    assert int(state.skipped) == 0
    assert np.isfinite(metrics.value("loss"))
    assert np.isnan(metrics.value("loss/first"))


def test_the_table_of_parameters_has_names_shapes_and_the_total():
    table = parameter_table({"decoder": {"kernel": jax.ShapeDtypeStruct((3, 4), np.float32)}})
    assert "| decoder/kernel | (3, 4) | float32 | 12   |" in table
    assert "Total: 12 -- 48 bytes" in table


def test_memory_per_device_and_a_warning_about_replicated_parameters():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    stage = ToyStage()
    with jax.set_mesh(mesh):
        state = abstract_state(stage, make_optimizer(CONFIG, steps=10), config=CONFIG, mesh=mesh)
    (line,) = describe(state, mesh=mesh)
    assert line.startswith("0.000208M parameters on the mesh data:2 x fsdp:2 x tensor:2; per device 2.88e-07 GB")
    replicated = jax.ShapeDtypeStruct((40, 1408, 3, 16, 88), np.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    state = dataclasses.replace(state, params=state.params | {"vision": {"kernel": replicated}})
    _, warning = describe(state, mesh=mesh)
    assert "WARNING: 0.952 GB of parameters are replicated on every device, the largest is vision/kernel" in warning
