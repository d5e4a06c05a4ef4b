"""Rotary tables and T5 buckets against their formulas."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.layers.positions import apply_rotary, relative_buckets, rotary_tables


def test_rotary_rotates_the_half_split_pairs():
    """(x[i], x[i + H/2]) as a complex number, times exp(i * position * theta^(-2i/H))."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 0, 1, 1000, 2047]])
    pairs = x[..., :4] + 1j * x[..., 4:]
    angles = positions[..., None, None] * 10000.0 ** (-np.arange(4) / 4)
    rotated = pairs * np.exp(1j * angles)
    expected = np.concatenate([rotated.real, rotated.imag], axis=-1)
    actual = apply_rotary(jnp.asarray(x), rotary_tables(jnp.asarray(positions), head_dim=8))
    np.testing.assert_allclose(actual, expected, atol=2e-4)  # float32 angles near 2047


def test_rotary_scores_depend_only_on_the_distance():
    rng = np.random.default_rng(1)
    query, key = (jnp.asarray(rng.standard_normal((1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def score(query_position, key_position):
        tables = [rotary_tables(jnp.asarray([[p]]), head_dim=16) for p in (query_position, key_position)]
        return float(jnp.sum(apply_rotary(query, tables[0]) * apply_rotary(key, tables[1])))

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_bfloat16_is_rotated_in_float32():
    x = jnp.asarray(np.random.default_rng(2).standard_normal((1, 3, 1, 8)), jnp.bfloat16)
    tables = rotary_tables(jnp.asarray([[0, 500, 2000]]), head_dim=8)
    exact = apply_rotary(x.astype(jnp.float32), tables)
    rotated = apply_rotary(x, tables)
    assert rotated.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rotated, exact.astype(jnp.bfloat16))


def test_buckets_of_the_docstring():
    buckets = relative_buckets(10, 10, buckets=4, max_distance=8)
    assert np.asarray(buckets)[9, ::-1].tolist() == [0, 1, 2, 2, 3, 3, 3, 3, 3, 3]
    assert np.asarray(buckets)[0].tolist() == [0] * 10  # keys after the query


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (16, 64), (8, 40)])
def test_buckets_by_the_formula(buckets, max_distance):
    def bucket(distance):
        exact = buckets // 2
        if distance < exact:
            return max(distance, 0)
        growth = math.log(distance / exact) / math.log(max_distance / exact)
        return min(exact + int(growth * (buckets - exact) + 1e-6), buckets - 1)

    length = 2 * max_distance
    actual = np.asarray(relative_buckets(length, length, buckets=buckets, max_distance=max_distance))
    expected = np.array([[bucket(q - k) for k in range(length)] for q in range(length)])
    # at exact powers, float32 may round a logarithm down, also in T5
    assert np.abs(actual - expected).max() <= 1
    assert (actual != expected).mean() < 0.01
    assert actual.max() == buckets - 1
