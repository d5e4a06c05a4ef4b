"""Linear maps and their low-rank adapters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.layers.linear import DenseGeneral, LoraConfig, OutputProjection, QKVProjection
from emu_jax.sharding import axes
from emu_jax.sharding.specs import unbox

LORA = LoraConfig(rank=3, alpha=6.0, dropout=0.5, targets=("",))
HEADS = {"features": (2, 5), "in_axes": (axes.EMBED,), "out_axes": (axes.HEADS, axes.KV)}


def test_kernels_with_several_input_and_output_dimensions():
    x = jax.random.normal(jax.random.key(0), (4, 7, 2, 5))
    layer = DenseGeneral((6, 3), (axes.HEADS, axes.KV), (axes.EMBED, axes.MLP), use_bias=True)
    params = unbox(layer.init(jax.random.key(1), x))["params"]
    params["bias"] = jnp.arange(18.0).reshape(6, 3)
    expected = np.einsum("blnh,nhdm->bldm", x, params["kernel"]) + np.arange(18.0).reshape(6, 3)
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-5)


def test_kernels_carry_axis_names_and_fan_in_counts_all_input_dimensions():
    x = jnp.zeros((1, 40, 25))
    layer = DenseGeneral((1000,), (axes.HEADS, axes.KV), (axes.EMBED,))
    boxed = layer.init(jax.random.key(0), x)["params"]["kernel"]
    assert isinstance(boxed, nn.LogicallyPartitioned)
    assert boxed.names == (axes.HEADS, axes.KV, axes.EMBED)
    assert float(boxed.value.std()) == pytest.approx(1000**-0.5, rel=0.02)


def test_adapters_change_nothing_at_first():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    adapted = DenseGeneral(**HEADS, lora=LORA)
    params = unbox(adapted.init(jax.random.key(1), x))["params"]
    assert np.abs(params["lora_a"]).min() > 0
    assert not np.abs(params["lora_b"]).any()
    plain = DenseGeneral(**HEADS).apply({"params": {"kernel": params["kernel"]}}, x)
    np.testing.assert_array_equal(adapted.apply({"params": params}, x), plain)


def test_merged_adapters_give_the_same_outputs():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    adapted = DenseGeneral(**HEADS, lora=LORA)
    params = unbox(adapted.init(jax.random.key(1), x))["params"]
    params["lora_b"] = jax.random.normal(jax.random.key(2), (3, 2, 5))
    merged = params["kernel"] + LORA.alpha / LORA.rank * jnp.einsum("dr,rnh->dnh", params["lora_a"], params["lora_b"])
    expected = DenseGeneral(**HEADS).apply({"params": {"kernel": merged}}, x)
    np.testing.assert_allclose(adapted.apply({"params": params}, x), expected, atol=1e-5)


def test_dropout_applies_to_the_adapter_only_and_only_in_training():
    x = jnp.ones((1, 1, 8))
    adapted = DenseGeneral(**HEADS, lora=LORA)
    params = unbox(adapted.init(jax.random.key(1), x))["params"]
    params["lora_b"] = jnp.ones((3, 2, 5))
    plain = DenseGeneral(**HEADS).apply({"params": {"kernel": params["kernel"]}}, x)
    runs = [
        adapted.apply({"params": params}, x, deterministic=False, rngs={"dropout": jax.random.key(i)}) for i in (0, 1)
    ]
    assert not np.allclose(runs[0], runs[1])
    params["lora_b"] = jnp.zeros((3, 2, 5))
    without = adapted.apply({"params": params}, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(without, plain)


def test_qkv_and_output_projections_match_dense_general():
    x = jax.random.normal(jax.random.key(0), (2, 5, 24))
    names = ((axes.EMBED,), (axes.QKV, axes.HEADS, axes.KV))
    plain, projection = DenseGeneral((3, 4, 6), *names), QKVProjection((3, 4, 6), *names)
    params = unbox(plain.init(jax.random.key(1), x))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, unbox(projection.init(jax.random.key(1), x))))
    fused = plain.apply(params, x)
    for i, output in enumerate(projection.apply(params, x)):
        np.testing.assert_allclose(output, fused[:, :, i], atol=1e-6)

    heads = jax.random.normal(jax.random.key(2), (2, 5, 4, 6))
    names = ((axes.HEADS, axes.KV), (axes.EMBED,))
    plain, projection = DenseGeneral((24,), *names, use_bias=True), OutputProjection((24,), *names, use_bias=True)
    params = unbox(plain.init(jax.random.key(3), heads))
    assert jax.tree.structure(params) == jax.tree.structure(unbox(projection.init(jax.random.key(3), heads)))
    np.testing.assert_allclose(projection.apply(params, heads), plain.apply(params, heads), atol=1e-6)
