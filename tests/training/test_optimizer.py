"""Schedules, learning rates per part, weight decay, moments and Muon."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from emu_jax.errors import UserError
from emu_jax.training.config import OptimizerConfig, Schedule
from emu_jax.training.optimizer import make_optimizer, make_schedule, peak_learning_rate
from emu_jax.training.partition import flatten, merge, split


def fractions(config: OptimizerConfig, steps: int) -> np.ndarray:
    return np.asarray(jax.vmap(make_schedule(config, steps=steps))(jnp.arange(steps)))


@pytest.mark.parametrize("warmup", [{"warmup_steps": 10}, {"warmup_fraction": 0.1}])
def test_warmup_by_steps_or_fraction_then_cosine(warmup):
    found = fractions(OptimizerConfig(**warmup, final_fraction=0.1), 100)
    np.testing.assert_allclose(found[:10], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(found[55], 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * 45 / 90)), rtol=1e-5)
    assert 0.1 < found[-1] < 0.11
    assert (np.diff(found[10:]) < 0).all()


def test_constant_wsd_and_piecewise():
    assert (fractions(OptimizerConfig(schedule=Schedule.CONSTANT, warmup_steps=0), 20) == 1).all()
    wsd = fractions(OptimizerConfig(schedule=Schedule.WSD, warmup_steps=10, cooldown_fraction=0.2), 100)
    assert (wsd[10:81] == 1).all()
    np.testing.assert_allclose(wsd[90], 0.5, rtol=1e-5)
    np.testing.assert_allclose(wsd[99], 0.05, rtol=1e-5)
    # As for the visual decoder: warm-up to the peak in 5 steps, half from 10, a tenth from 14.
    piecewise = fractions(
        OptimizerConfig(schedule=Schedule.PIECEWISE, warmup_steps=5, boundaries=(10, 14), values=(0.5, 0.1)), 15
    )
    np.testing.assert_allclose(piecewise, [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.1], rtol=1e-6)


def test_each_part_has_its_learning_rate():
    config = OptimizerConfig(
        learning_rate=3e-5,
        part_learning_rates=(("^vision_encoder/", 4e-5), ("^causal_former/", 1e-4)),
        schedule=Schedule.CONSTANT,
        warmup_steps=0,
        weight_decay=0.0,
    )
    params = {part: {"kernel": jnp.ones((4,))} for part in ("vision_encoder", "causal_former", "decoder")}
    optimizer = make_optimizer(config, steps=10)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    for part, peak in (("vision_encoder", 4e-5), ("causal_former", 1e-4), ("decoder", 3e-5)):
        assert peak_learning_rate(config, f"{part}/kernel") == peak
        np.testing.assert_allclose(updates[part]["kernel"], -peak, rtol=1e-4)


def test_no_weight_decay_on_norms_biases_embeddings_positions_and_queries():
    config = OptimizerConfig(learning_rate=1.0, schedule=Schedule.CONSTANT, warmup_steps=0, weight_decay=0.1)
    exempt = ("mlp/bias", "embedding", "position_embedding", "causal_queries", "attention_norm/scale")
    flat = dict.fromkeys((*exempt, "mlp/kernel", "lm_head/kernel"), jnp.ones(2))
    params = traverse_util.unflatten_dict(flat, sep="/")
    optimizer = make_optimizer(config, steps=10)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert {path for path, update in flatten(updates).items() if update.any()} == {"mlp/kernel", "lm_head/kernel"}


def test_the_update_equals_optax_adamw():
    config = OptimizerConfig(learning_rate=1e-2, schedule=Schedule.CONSTANT, warmup_steps=0, no_decay=())
    reference = optax.adamw(1e-2, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay)
    ours = make_optimizer(config, steps=10)
    params = {"kernel": jnp.linspace(-1, 1, 12).reshape(3, 4)}
    state, expected_state = ours.init(params), reference.init(params)
    expected = params
    for i in range(4):
        grads = {"kernel": jnp.cos(jnp.arange(12.0).reshape(3, 4) + i)}
        updates, state = ours.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        updates, expected_state = reference.update(grads, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(params["kernel"], expected["kernel"], rtol=1e-6)


def test_moments_have_the_chosen_dtype():
    optimizer = make_optimizer(OptimizerConfig(moment_dtype="bfloat16", warmup_steps=0), steps=10)
    params = {"kernel": jnp.ones((3,))}
    state = optimizer.init(params)
    updates, state = optimizer.update({"kernel": jnp.full((3,), 0.5)}, state, params)
    assert state[0].mu["kernel"].dtype == state[0].nu["kernel"].dtype == jnp.bfloat16
    assert updates["kernel"].dtype == jnp.float32


def test_split_and_merge_keep_every_parameter_once():
    params = {"tower": {"kernel": 1, "lora_a": 2}, "head": {"kernel": 3}}
    trainable, frozen = split(params, ("lora", "^head/"))
    assert trainable == {"tower": {"lora_a": 2}, "head": {"kernel": 3}}
    assert frozen == {"tower": {"kernel": 1}}
    assert merge(trainable, frozen) == params


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": Schedule.PIECEWISE}, "boundaries"),
        ({"boundaries": (1,), "values": ()}, "same number"),
        ({"moment_dtype": "float16"}, "float16"),
        (
            {"warmup_fraction": 10.0},
            r"warmup_fraction must be at least 0 and below 1, not 10.0; set optimizer.warmup_s",
        ),
        ({"warmup_steps": -1}, "warmup_steps must be an integer from 0 to"),
    ],
)
def test_invalid_configs(fields, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**fields)


def test_warmup_must_be_shorter_than_the_run():
    with pytest.raises(UserError, match="takes 10 steps, but the run has only 10"):
        make_schedule(OptimizerConfig(warmup_steps=10), steps=10)


def test_muon_makes_each_layers_matrix_orthogonal_and_leaves_the_rest_to_adam():
    config = OptimizerConfig(learning_rate=1.0, schedule=Schedule.CONSTANT, warmup_steps=0, weight_decay=0.0)
    layers, width, heads, features = 2, 12, 3, 4
    shapes = {
        "blocks/attention/query/kernel": (layers, width, heads, features),
        "blocks/attention/qkv/kernel": (layers, width, 3, heads, features),
        "blocks/attention/out/kernel": (layers, heads, features, width),
        "blocks/mlp/up/kernel": (layers, width, 30),
        "blocks/resnets_0/conv1/kernel": (3, 3, 5, 12),
        "blocks/mlp/up/bias": (layers, 30),
        "lm_head/projection/kernel": (width, 30),
    }
    rng = np.random.default_rng(0)
    grads = traverse_util.unflatten_dict({k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}, sep="/")
    updates = {}
    for muon in ((), (r"blocks/.*kernel$",)):
        optimizer = make_optimizer(dataclasses.replace(config, muon=muon), steps=10)
        updates[muon], _ = optimizer.update(grads, optimizer.init(grads), jax.tree.map(jnp.zeros_like, grads))
        updates[muon] = {path: np.asarray(value) for path, value in flatten(updates[muon]).items()}
    by_adam, by_muon = updates.values()
    for path in ("blocks/mlp/up/bias", "lm_head/projection/kernel"):
        np.testing.assert_array_equal(by_muon[path], by_adam[path])
    fused = by_muon["blocks/attention/qkv/kernel"]
    matrices = [*by_muon["blocks/mlp/up/kernel"], *by_muon["blocks/attention/query/kernel"].reshape(layers, width, -1)]
    matrices += [by_muon["blocks/resnets_0/conv1/kernel"].reshape(-1, 12)]
    matrices += [*by_muon["blocks/attention/out/kernel"].reshape(layers, -1, width)]
    matrices += [fused[layer, :, i].reshape(width, -1) for layer in range(layers) for i in range(3)]
    for matrix in matrices:
        assert 0.1 < np.sqrt(np.mean(matrix**2)) < 0.3
        values = np.linalg.svd(matrix, compute_uv=False)
        assert values.max() < 2 * values.min()  # five iterations make them similar, not equal
