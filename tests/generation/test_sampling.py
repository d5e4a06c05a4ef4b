"""Penalties, filters and limits on scores, compared with simple loops; ranges of options."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.generation.buckets import bucket, power_of_two
from emu_jax.generation.options import TextOptions, image_options, text_options
from emu_jax.generation.sampling import compile_options, filter_scores, process_scores

V = 11


def _process(scores: np.ndarray, tokens: list[list[int]], *, capacity: int = 9, **options) -> np.ndarray:
    """Return `process_scores` after `tokens` (`<s>` = 1 first), in a buffer of `capacity` more."""
    search, controls = compile_options(
        TextOptions(**options), capacity=capacity, max_new_tokens=capacity, bos_id=1, eos_id=2, pad_id=0
    )
    length = len(tokens[0])
    padded = np.ones((len(tokens), capacity + 1), np.int32)
    padded[:, :length] = tokens
    return np.asarray(process_scores(jnp.asarray(scores), jnp.asarray(padded), jnp.int32(length), controls, search))


def test_repetition_penalty_counts_the_start_token() -> None:
    scores = np.linspace(-2, 2, V, dtype=np.float32)[None]
    penalized = _process(scores, [[1, 5, 9]], repetition_penalty=1.5)
    expected = scores.copy()
    for token in (1, 5, 9):
        expected[0, token] = scores[0, token] * 1.5 if scores[0, token] < 0 else scores[0, token] / 1.5
    np.testing.assert_allclose(penalized, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("n", "tokens", "banned"),
    [
        (2, [1, 4, 5, 6, 4], {5}),
        (3, [1, 4, 5, 6, 4, 5], {6}),
        (3, [1, 4], set()),
        (1, [1, 7, 8], {1, 7, 8}),
        (2, [1], set()),
        (2, [1, 1], {1}),
        (2, [1, 3, 3, 3], {3}),
    ],
)
def test_no_ngram_is_repeated(n: int, tokens: list[int], banned: set[int]) -> None:
    scores = _process(np.zeros((1, V), np.float32), [tokens], no_repeat_ngram_size=n)
    assert set(np.flatnonzero(np.isneginf(scores[0]))) == banned


@pytest.mark.parametrize(("length", "allowed"), [(1, False), (3, False), (4, True), (6, True)])
def test_min_length_counts_the_start_token(length: int, allowed: bool) -> None:
    scores = _process(np.zeros((1, V), np.float32), [[1] * length], min_length=4)
    assert np.isfinite(scores[0, 2]) == allowed


def test_filters_leave_the_fewest_tokens_with_probability_p_among_the_k_best() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.normal(scale=2, size=(3, V)).astype(np.float32)
        k, p = int(rng.integers(0, V + 3)), float(rng.uniform(0.05, 1))
        remaining = np.isfinite(
            np.asarray(filter_scores(jnp.asarray(scores), top_k=jnp.int32(k), top_p=jnp.float32(p)))
        )
        for row in range(3):
            order = np.argsort(-scores[row])[: k or V]
            chances = np.exp(scores[row][order]) / np.exp(scores[row][order]).sum()
            count = 1 + int(np.sum(np.cumsum(chances)[:-1] < p))
            assert set(np.flatnonzero(remaining[row])) == set(order[:count])


@pytest.mark.parametrize(
    "options",
    [
        {"early_stopping": "soon"},
        {"top_k": 5},
        {"num_beams": 2, "temperature": 1.0},
    ],
)
def test_bad_combinations_are_refused(options: dict) -> None:
    with pytest.raises(UserError):
        TextOptions(**options)


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_new_tokens", [0, -1, 2**40, 2.5, True, NAN]),
        ("num_beams", [0, 1000, 1.5]),
        ("length_penalty", [NAN, INFINITY, -INFINITY, 11.0]),
        ("min_length", [-1, 2**40]),
        ("repetition_penalty", [0.0, -1.0, NAN, INFINITY]),
        ("no_repeat_ngram_size", [-1, 1000]),
        ("temperature", [-1.0, NAN, INFINITY, 1e-30]),
        ("top_k", [-1, 2**40]),
        ("top_p", [0.0, 1.5, -1.0, NAN]),
        ("seed", [-1, 2**32, "7"]),
    ],
)
def test_text_options_outside_their_range_are_refused_by_name(name: str, values: list) -> None:
    for value in values:
        with pytest.raises(UserError, match=name):
            text_options(**{name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("steps", [0, 10**6, 2.5]),
        ("guidance_scale", [-1.0, NAN, INFINITY]),
        ("seed", [-1, 2**32]),
        ("height", [0, -5, 10**6]),
        ("width", [0, 10**6]),
        ("sampler", ["euler", 3]),
    ],
)
def test_image_options_outside_their_range_are_refused_by_name(name: str, values: list) -> None:
    for value in values:
        with pytest.raises(UserError, match=name):
            image_options(**{name: value})


def test_buckets() -> None:
    assert [bucket(size) for size in (1, 16, 17, 25, 33, 49, 65)] == [16, 16, 24, 32, 48, 64, 96]
    assert bucket(60, largest=62) == 62
    assert bucket(62, largest=62) == 62
    assert [power_of_two(count) for count in (0, 1, 2, 3, 5, 8)] == [0, 1, 2, 4, 8, 8]
