"""Losses and collapse monitors against NumPy, and their masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.losses import (
    collapse_monitors,
    effective_rank,
    embedding_variance,
    masked_mean,
    mean_by_source,
    mean_pairwise_cosine,
    regression_losses,
    text_losses,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_text_loss_is_the_negative_log_probability_of_the_next_token():
    logits, tokens = normal(2, 5, 7), np.array([[1, 2, 3, 4, 5], [0, 6, 6, 0, 1]], np.int32)
    losses = text_losses(jnp.asarray(logits), tokens=jnp.asarray(tokens), vocab_size=7)
    for b in range(2):
        for t in range(4):
            probabilities = np.exp(logits[b, t]) / np.exp(logits[b, t]).sum()
            np.testing.assert_allclose(losses[b, t], -np.log(probabilities[tokens[b, t + 1]]), rtol=1e-5)
    assert (losses[:, -1] == 0).all()


def test_padding_of_the_vocabulary_has_no_probability():
    logits, tokens = normal(1, 4, 8), np.array([[0, 1, 2, 3]], np.int32)
    large_padding = logits.copy()
    large_padding[..., 6:] = 50.0
    padded = text_losses(jnp.asarray(large_padding), tokens=jnp.asarray(tokens), vocab_size=6)
    exact = text_losses(jnp.asarray(logits[..., :6]), tokens=jnp.asarray(tokens), vocab_size=6)
    np.testing.assert_allclose(padded, exact, rtol=1e-6)


def test_text_loss_of_bfloat16_logits_is_computed_in_float32():
    logits = jnp.asarray(normal(1, 3, 5) * 30, jnp.bfloat16)
    tokens = jnp.array([[0, 1, 2]])
    losses = text_losses(logits, tokens=tokens, vocab_size=5)
    assert losses.dtype == jnp.float32
    np.testing.assert_array_equal(losses, text_losses(logits.astype(jnp.float32), tokens=tokens, vocab_size=5))


def test_regression_target_is_the_detached_next_embedding():
    predictions, embeddings = jnp.asarray(normal(2, 4, 3)), jnp.asarray(normal(2, 4, 3, seed=1))
    losses = regression_losses(predictions, input_embeddings=embeddings)
    np.testing.assert_allclose(losses[0, 1], np.mean((predictions[0, 1] - embeddings[0, 2]) ** 2), rtol=1e-6)
    assert (losses[:, -1] == 0).all()
    to_predictions, to_targets = jax.grad(lambda p, e: regression_losses(p, input_embeddings=e).sum(), argnums=(0, 1))(
        predictions, embeddings
    )
    assert float(jnp.abs(to_predictions[:, :-1]).min()) > 0
    assert (to_targets == 0).all()


def test_masked_values_may_be_non_finite():
    values, mask = jnp.array([1.0, jnp.nan, 3.0, jnp.inf]), jnp.array([1.0, 0.0, 1.0, 0.0])
    mean = masked_mean(values, mask)
    assert (float(mean.total), float(mean.count), float(mean.compute())) == (4.0, 2.0, 2.0)


def test_means_by_source_sum_to_the_total():
    values, mask = jnp.asarray(normal(3, 4)), jnp.asarray(normal(3, 4, seed=1) > 0, jnp.float32)
    sources = jnp.asarray(np.random.default_rng(2).integers(0, 3, (3, 4)))
    means = mean_by_source(values, mask, source_ids=sources, num_sources=3)
    total = masked_mean(values, mask)
    np.testing.assert_allclose(sum(m.total for m in means), total.total, rtol=1e-5)
    assert float(sum(m.count for m in means)) == float(total.count)
    chosen = np.asarray(values)[(np.asarray(sources) == 1) & (np.asarray(mask) > 0)]
    np.testing.assert_allclose(means[1].total, chosen.sum(), rtol=1e-5)


def test_monitors_against_numpy():
    x, mask = normal(10, 3, 4), np.array([1] * 7 + [0] * 3, np.float32)
    valid, flat = x[:7], x[:7].reshape(7, -1)
    np.testing.assert_allclose(
        embedding_variance(jnp.asarray(x), mask=jnp.asarray(mask)), valid.var(0).mean(), rtol=1e-5
    )
    units = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    cosines = (units @ units.T)[~np.eye(7, dtype=bool)]
    np.testing.assert_allclose(
        mean_pairwise_cosine(jnp.asarray(x), mask=jnp.asarray(mask)), cosines.mean(), rtol=1e-4, atol=1e-6
    )
    singular = np.linalg.svd(flat - flat.mean(0), compute_uv=False)
    p = singular / singular.sum()
    rank = np.exp(-(p[p > 1e-6] * np.log(p[p > 1e-6])).sum())
    np.testing.assert_allclose(effective_rank(jnp.asarray(x), mask=jnp.asarray(mask)), rank, rtol=1e-2)


@pytest.mark.parametrize(("spread", "collapsed"), [(1.0, False), (1e-4, True)])
def test_monitors_detect_collapse(spread, collapsed):
    same_for_all_images = normal(1, 1, 4, 8, seed=3)
    embeddings = jnp.asarray(same_for_all_images + spread * normal(6, 2, 4, 8))
    found = collapse_monitors(embeddings, num_images=jnp.full((6,), 2))
    assert (float(found["visual_embedding_variance"].compute()) < 1e-6) == collapsed
    assert (float(found["visual_embedding_cosine"].compute()) > 0.999) == collapsed


def test_monitors_ignore_unused_slots_and_have_no_weight_below_two_images():
    embeddings, counts = normal(4, 2, 3, 5), jnp.ones((4,), jnp.int32)
    other = embeddings.copy()
    other[:, 1] = 1e3
    first = collapse_monitors(jnp.asarray(embeddings), num_images=counts)
    second = collapse_monitors(jnp.asarray(other), num_images=counts)
    none = collapse_monitors(jnp.asarray(embeddings), num_images=counts * 0)
    for name, mean in first.items():
        assert float(mean.count) == 1
        np.testing.assert_allclose(second[name].compute(), mean.compute(), rtol=1e-4, err_msg=name)
        assert (float(none[name].total), float(none[name].count)) == (0, 0)
