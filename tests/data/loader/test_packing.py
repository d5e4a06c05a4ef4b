"""Rows respect both budgets, every sequence is used once, and little space is wasted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_jax.data.batch import BatchConfig, batch_spec, empty_batch, fill
from emu_jax.data.loader.packing import choose_row, fill_row
from emu_jax.data.sequence import TokenSequence

sizes = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 6)), min_size=1, max_size=40)


def rows_of(waiting, *, length, max_images, pool):
    """Return all rows as lists of indices into `waiting`, packed from a pool as in the loader."""
    order, rows, read = [], [], 0
    while read < len(waiting) or order:
        while read < len(waiting) and len(order) < pool:
            order.append(read)
            read += 1
        chosen = choose_row([waiting[i] for i in order], length=length, max_images=max_images)
        rows.append([order[i] for i in chosen])
        order = [index for i, index in enumerate(order) if i not in set(chosen)]
    return rows


def test_docstring_example():
    assert choose_row([(50, 1), (50, 0), (50, 3), (40, 3)], length=100, max_images=4) == [0, 2]


@settings(deadline=None)
@given(sizes, st.integers(1, 20))
def test_every_sequence_once_and_within_both_budgets(waiting, pool):
    rows = rows_of(waiting, length=100, max_images=6, pool=pool)
    assert sorted(i for row in rows for i in row) == list(range(len(waiting)))
    for row in rows:
        assert sum(waiting[i][0] for i in row) <= 100
        assert sum(waiting[i][1] for i in row) <= 6
    assert rows == rows_of(waiting, length=100, max_images=6, pool=pool)


@settings(deadline=None)
@given(sizes)
def test_the_oldest_is_first_and_nothing_that_fits_is_left(waiting):
    chosen = choose_row(waiting, length=100, max_images=6)
    assert chosen[0] == 0
    left = [100 - sum(waiting[i][0] for i in chosen), 6 - sum(waiting[i][1] for i in chosen)]
    rest = [size for i, size in enumerate(waiting) if i not in set(chosen)]
    assert not any(tokens <= left[0] and images <= left[1] for tokens, images in rest)


def test_a_sequence_larger_than_a_row_is_refused():
    with pytest.raises(ValueError, match="larger than a row"):
        choose_row([(10, 1), (101, 1)], length=100, max_images=6)
    with pytest.raises(ValueError, match="larger than a row"):
        choose_row([(10, 7)], length=100, max_images=6)


def test_pairs_with_the_lengths_of_laion_fill_both_budgets():
    """About 62 tokens and one image each, L = 1024 and I = 17, one slot more than fits on average: 95% and 85%."""
    rng = np.random.default_rng(0)
    captions = np.clip(rng.lognormal(3.1, 0.5, 4000), 3, 200).astype(int)
    waiting = [(34 + 2 + int(n), 1) for n in captions]
    assert 58 < np.mean([tokens for tokens, _ in waiting]) < 64
    rows = rows_of(waiting, length=1024, max_images=17, pool=256)[:-2]
    tokens = np.mean([sum(waiting[i][0] for i in row) for row in rows]) / 1024
    images = np.mean([sum(waiting[i][1] for i in row) for row in rows]) / 17
    assert tokens >= 0.95
    assert images >= 0.85


def sequence(tokens, images, *, value):
    pixels = tuple(np.full((4, 4, 3), value, np.uint8) for _ in range(images))
    return TokenSequence(
        tokens=np.full(tokens, value, np.int32),
        text_loss_mask=np.ones(tokens, np.float32),
        regression_mask=np.full(tokens, 0.5, np.float32),
        images=pixels,
    )


def test_contents_of_a_row():
    """tokens 7 7 7 9 9 . | positions 0 1 2 0 1 . | segments 1 1 1 2 2 ."""
    config = BatchConfig(batch_size=2, length=6, max_images=3, image_size=4)
    batch = empty_batch(config, pad_id=99)
    assert {name: (spec.shape, spec.dtype) for name, spec in batch_spec(config).items()} == {
        name: (array.shape, array.dtype) for name, array in batch.items()
    }
    both = [sequence(3, 1, value=7), sequence(2, 1, value=9)]
    fill_row(batch, 1, both, images=[s.images for s in both], source_ids=[4, 2])
    assert batch["tokens"][1].tolist() == [7, 7, 7, 9, 9, 99]
    assert batch["positions"][1].tolist() == [0, 1, 2, 0, 1, 0]
    assert batch["segment_ids"][1].tolist() == [1, 1, 1, 2, 2, 0]
    assert batch["source_ids"][1].tolist() == [4, 4, 4, 2, 2, 0]
    assert batch["text_loss_mask"][1].tolist() == [1, 1, 1, 1, 1, 0]
    assert batch["regression_mask"][1].tolist() == [0.5] * 5 + [0]
    assert batch["images"][1, :, 0, 0, 0].tolist() == [7, 9, 0]
    assert batch["num_images"].tolist() == [0, 2]
    assert not batch["segment_ids"][0].any()
    assert (fill(batch).tokens, fill(batch).images) == (5 / 12, 2 / 6)
