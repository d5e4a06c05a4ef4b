"""Attention against NumPy, and the choice of its implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from emu_jax.layers import attention
from emu_jax.layers.attention import Attention, LayerCache, attend
from emu_jax.layers.dot_product_attention import chunk_size, chunked_attention, dot_product_attention
from emu_jax.layers.masks import PackedCausal, packed_causal_mask
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
        options["mask"][..., 0] = True  # a query with no key has no softmax
    expected = reference(query, key, value, scale=0.3, **options)
    arrays = {name: jnp.asarray(array) for name, array in options.items()}
    actual = dot_product_attention(jnp.asarray(query), jnp.asarray(key), jnp.asarray(value), scale=0.3, **arrays)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_masked_keys_have_zero_weight():
    query, key = jnp.ones((1, 1, 1, 4)), jnp.ones((1, 3, 1, 4))
    value = jnp.asarray([1.0, 2.0, 1e30]).reshape(1, 3, 1, 1) * jnp.ones((1, 3, 1, 4))
    out = dot_product_attention(query, key, value, scale=1.0, mask=jnp.asarray([[[True, True, False]]]))
    np.testing.assert_allclose(out, 1.5 * np.ones((1, 1, 1, 4)))


def test_softmax_of_bfloat16_inputs_is_in_float32():
    """Logits of 200 and 200.5 are equal in bfloat16."""
    query, key = jnp.full((1, 1, 1, 1), 1.0, jnp.bfloat16), jnp.zeros((1, 2, 1, 1), jnp.bfloat16)
    value = jnp.asarray([0.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1)
    bias = jnp.asarray([200.0, 200.5]).reshape(1, 1, 1, 2)
    out = dot_product_attention(query, key, value, scale=1.0, bias=bias)
    assert float(out[0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-0.5)), abs=4e-3)


def test_cross_attention_attends_to_the_context():
    layer = Attention(num_heads=2, head_dim=4, scale=1.0)
    x, context = jax.random.normal(jax.random.key(0), (2, 3, 6)), jax.random.normal(jax.random.key(1), (2, 5, 10))
    params = unbox(layer.init(jax.random.key(2), x, context))["params"]
    assert params["key"]["kernel"].shape == (10, 2, 4)
    out, cache = layer.apply({"params": params}, x, context)
    project = lambda name, source: np.einsum("bld,dnh->blnh", source, params[name]["kernel"])
    inner = reference(project("query", x), project("key", context), project("value", context), scale=1.0)
    np.testing.assert_allclose(out, np.einsum("blnh,nhd->bld", inner, params["out"]["kernel"]), atol=1e-5)
    assert cache is None


def test_cache_appends_keys_and_values_at_its_index():
    cache = LayerCache(key=jnp.zeros((1, 1, 4, 2)), value=jnp.zeros((1, 1, 4, 2)), index=jnp.asarray(1))
    filled = cache.append(jnp.ones((1, 2, 1, 2)), 2 * jnp.ones((1, 2, 1, 2)))
    assert np.asarray(filled.key)[0, 0, :, 0].tolist() == [0, 1, 1, 0]
    assert np.asarray(filled.value)[0, 0, :, 0].tolist() == [0, 2, 2, 0]
    assert int(filled.index) == 1


@pytest.mark.parametrize("length", [576, 640])
def test_chunked_attention_has_the_same_value_and_gradients(length):
    rng = np.random.default_rng(0)
    shapes = ((1, length, 2, 4), (1, length, 1, 4), (1, length, 1, 4), (1, length, 2, 4))
    query, key, value, weights = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)

    def all_queries(query, key, value):
        probabilities = jax.nn.softmax(0.5 * jnp.einsum("BTNH,BSKH->BNTS", query, key))
        return jnp.einsum("BNTS,BSKH->BTNH", probabilities, value)

    def chunked(query, key, value):
        return chunked_attention(query, key, value, scale=0.5, chunk=chunk_size(length, length))

    def with_gradients(attend):
        out, pullback = jax.vjp(attend, query, key, value)
        return out, *pullback(weights)

    actual, expected = (jax.jit(with_gradients, static_argnums=0)(attend) for attend in (chunked, all_queries))
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def random_inputs(length, *, head_dim=8, keys=None):
    rng = np.random.default_rng(0)
    shapes = ((1, length, 2, head_dim), (1, keys or length, 2, head_dim), (1, keys or length, 2, head_dim))
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def test_packed_causal_rows_get_the_dense_mask_on_a_cpu():
    inputs, segment_ids = random_inputs(6), jnp.asarray([[1, 1, 2, 2, 2, 0]])
    out = attend(*inputs, scale=0.5, mask=PackedCausal(segment_ids))
    expected = dot_product_attention(*inputs, scale=0.5, mask=packed_causal_mask(segment_ids))
    np.testing.assert_array_equal(out, expected)


def implementation(inputs, **options):
    """Return the name of the implementation that `attend` chooses, from the traced program."""
    program = str(jax.make_jaxpr(lambda *arrays: attend(*arrays, scale=1.0, **options))(*inputs))
    return "fused" if "pallas_call" in program else "chunked" if "scan[" in program else "dot_product"


MASK = PackedCausal(jnp.ones((1, 1024), jnp.int32))


@pytest.mark.parametrize(
    ("shape", "mask", "on_cpu", "on_tpu"),
    [
        ({"length": 1024}, MASK, "dot_product", "fused"),
        ({"length": 1024}, None, "chunked", "fused"),
        ({"length": 1024, "head_dim": 160}, None, "chunked", "chunked"),
        ({"length": 1024, "keys": 77}, None, "chunked", "chunked"),
        ({"length": 1024}, packed_causal_mask(MASK.segment_ids), "dot_product", "dot_product"),
        ({"length": 257}, None, "dot_product", "fused"),
        ({"length": 256}, None, "chunked", "chunked"),
        ({"length": 64}, None, "dot_product", "dot_product"),
    ],
)
def test_attend_chooses_by_shape_mask_and_device(shape, mask, on_cpu, on_tpu, monkeypatch):
    inputs = random_inputs(**shape)
    assert implementation(inputs, mask=mask) == on_cpu
    monkeypatch.setattr(attention, "on_tpu", lambda: True)
    assert implementation(inputs, mask=mask) == on_tpu


def test_a_bias_is_never_dropped(monkeypatch):
    monkeypatch.setattr(attention, "on_tpu", lambda: True)
    bias = jnp.zeros((1, 2, 1024, 1024))
    assert implementation(random_inputs(1024), bias=bias) == "dot_product"
    assert implementation(random_inputs(1024), bias=bias, mask=MASK) == "dot_product"


def test_wrong_shapes_are_errors():
    query, key, value = random_inputs(6)
    with pytest.raises(TypeCheckError):
        attend(query, key, value[:, :5], scale=1.0)
    layer = Attention(num_heads=2, head_dim=4)
    with pytest.raises(TypeCheckError):
        layer.init(jax.random.key(0), jnp.zeros((2, 3, 6)), mask=jnp.ones((2, 4, 3), bool))
