"""Attention against the same in NumPy, query by query."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.layers.attention import Attention, LayerCache, dot_product_attention
from emu_jax.sharding.specs import unbox


def reference(query, key, value, *, scale, mask=None, bias=None):
    B, T, N, H = query.shape
    out = np.zeros((B, T, N, H))
    group = N // key.shape[2]
    for b in range(B):
        for n in range(N):
            logits = scale * query[b, :, n] @ key[b, :, n // group].T
            if bias is not None:
                logits = logits + bias[b % len(bias), n]
            if mask is not None:
                logits = np.where(mask[b % len(mask)], logits, -np.inf)
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
            out[b, :, n] = weights / weights.sum(axis=-1, keepdims=True) @ value[b, :, n // group]
    return out


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_dot_product_attention(kv_heads, with_bias, with_mask):
    rng = np.random.default_rng(0)
    query = rng.standard_normal((2, 5, 4, 8)).astype(np.float32)
    key, value = (rng.standard_normal((2, 7, kv_heads, 8)).astype(np.float32) for _ in range(2))
    options = {}
    if with_bias:
        options["bias"] = rng.standard_normal((1, 4, 5, 7)).astype(np.float32)
    if with_mask:
        options["mask"] = rng.random((2, 5, 7)) < 0.5
        options["mask"][..., 0] = True  # a query that sees nothing has no softmax
    expected = reference(query, key, value, scale=0.3, **options)
    arrays = {name: jnp.asarray(array) for name, array in options.items()}
    actual = dot_product_attention(jnp.asarray(query), jnp.asarray(key), jnp.asarray(value), scale=0.3, **arrays)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_masked_key_has_no_weight_at_all():
    query, key = jnp.ones((1, 1, 1, 4)), jnp.ones((1, 3, 1, 4))
    value = jnp.asarray([1.0, 2.0, 1e30]).reshape(1, 3, 1, 1) * jnp.ones((1, 3, 1, 4))
    out = dot_product_attention(query, key, value, scale=1.0, mask=jnp.asarray([[[True, True, False]]]))
    np.testing.assert_allclose(out, 1.5 * np.ones((1, 1, 1, 4)))


def test_softmax_is_in_float32_when_the_rest_is_in_bfloat16():
    """Logits of 200 and 200.5 are one number in bfloat16."""
    query, key = jnp.full((1, 1, 1, 1), 1.0, jnp.bfloat16), jnp.zeros((1, 2, 1, 1), jnp.bfloat16)
    value = jnp.asarray([0.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1)
    bias = jnp.asarray([200.0, 200.5]).reshape(1, 1, 1, 2)
    out = dot_product_attention(query, key, value, scale=1.0, bias=bias)
    assert float(out[0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-0.5)), abs=4e-3)


def test_cross_attention_reads_the_context():
    layer = Attention(num_heads=2, head_dim=4, scale=1.0)
    x, context = jax.random.normal(jax.random.key(0), (2, 3, 6)), jax.random.normal(jax.random.key(1), (2, 5, 10))
    params = unbox(layer.init(jax.random.key(2), x, context))["params"]
    assert params["key"]["kernel"].shape == (10, 2, 4)
    out, cache = layer.apply({"params": params}, x, context)
    project = lambda name, source: np.einsum("bld,dnh->blnh", source, params[name]["kernel"])
    inner = reference(project("query", x), project("key", context), project("value", context), scale=1.0)
    np.testing.assert_allclose(out, np.einsum("blnh,nhd->bld", inner, params["out"]["kernel"]), atol=1e-5)
    assert cache is None


def test_a_cache_takes_its_keys_where_its_index_says():
    cache = LayerCache(key=jnp.zeros((1, 1, 4, 2)), value=jnp.zeros((1, 1, 4, 2)), index=jnp.asarray(1))
    filled = cache.append(jnp.ones((1, 2, 1, 2)), 2 * jnp.ones((1, 2, 1, 2)))
    assert np.asarray(filled.key)[0, 0, :, 0].tolist() == [0, 1, 1, 0]
    assert np.asarray(filled.value)[0, 0, :, 0].tolist() == [0, 2, 2, 0]
    assert int(filled.index) == 1


@pytest.mark.parametrize("length", [576, 640])
def test_many_places_are_attended_in_parts(length):
    """Value and gradients are those of all places at once."""
    rng = np.random.default_rng(0)
    shapes = ((1, length, 2, 4), (1, length, 1, 4), (1, length, 1, 4), (1, length, 2, 4))
    query, key, value, weights = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)

    def at_once(query, key, value):
        shares = jax.nn.softmax(0.5 * jnp.einsum("BTNH,BSKH->BNTS", query, key))
        return jnp.einsum("BNTS,BSKH->BTNH", shares, value)

    def with_gradients(attend):
        out, pull = jax.vjp(attend, query, key, value)
        return out, *pull(weights)

    in_parts = lambda *arrays: dot_product_attention(*arrays, scale=0.5)
    assert "scan" in str(jax.make_jaxpr(in_parts)(query, key, value))
    ours, whole = (jax.jit(with_gradients, static_argnums=0)(attend) for attend in (in_parts, at_once))
    for mine, wanted in zip(ours, whole, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
