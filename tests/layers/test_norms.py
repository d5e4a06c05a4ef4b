"""Norms against their formulas; statistics are in float32."""

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.layers.norms import LayerNorm, RMSNorm

X = np.random.default_rng(0).standard_normal((3, 4, 32)).astype(np.float32) * 5 + 2
SCALE, BIAS = np.linspace(0.5, 2, 32, dtype=np.float32), np.linspace(-1, 1, 32, dtype=np.float32)


def test_rms_norm_has_no_mean_and_no_bias():
    layer = RMSNorm(eps=1e-6)
    assert set(layer.init(jax.random.key(0), jnp.asarray(X))["params"]) == {"scale"}
    expected = X / np.sqrt((X.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * SCALE
    np.testing.assert_allclose(layer.apply({"params": {"scale": SCALE}}, jnp.asarray(X)), expected, rtol=1e-5)


def test_layer_norm():
    mean, variance = X.astype(np.float64).mean(-1, keepdims=True), X.astype(np.float64).var(-1, keepdims=True)
    expected = (X - mean) / np.sqrt(variance + 1e-3) * SCALE + BIAS
    actual = LayerNorm(eps=1e-3).apply({"params": {"scale": SCALE, "bias": BIAS}}, jnp.asarray(X))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_statistics_of_bfloat16_inputs_are_in_float32():
    """In bfloat16, the squares of 300 and the sum of 4096 of them would lose the small differences."""
    x = jnp.asarray(300 + np.random.default_rng(1).standard_normal((1, 4096)), jnp.bfloat16)
    params = {"params": {"scale": jnp.ones(4096), "bias": jnp.zeros(4096)}}
    out = LayerNorm(dtype=jnp.bfloat16).apply(params, x)
    assert out.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean()) / exact.std()
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, rtol=0.01, atol=0.01)
