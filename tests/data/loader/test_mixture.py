"""Each document once per epoch, with the requested weights, at positions that any reader can compute."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_jax.data.loader.mixture import ENDLESS, Mixture, check_shards
from emu_jax.errors import UserError


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 3), st.floats(0.2, 5)), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_each_document_once_per_epoch(sets, seed, shuffle):
    lengths, epochs, weights = zip(*sets, strict=True)
    mixture = Mixture(lengths=lengths, weights=weights, epochs=epochs, seed=seed, shuffle=shuffle)
    documents = [mixture[i] for i in range(len(mixture))]
    counts = collections.Counter((p.set, p.index, p.epoch) for p in documents if p is not None)
    assert counts == {(s, i, e): 1 for s, n in enumerate(lengths) for i in range(n) for e in range(epochs[s])}


def test_weights_hold_in_every_block():
    mixture = Mixture(lengths=(10, 1000, 10**9), weights=(1, 2, 5), epochs=(None,) * 3, seed=1)
    assert len(mixture) == ENDLESS
    for start in (0, 8 * 10**6):
        drawn = collections.Counter(mixture[start + i].set for i in range(8000))
        assert drawn == {0: 1000, 1: 2000, 2: 5000}


def test_weights_of_the_paper():
    mixture = Mixture(lengths=(10,) * 5, weights=(128, 128, 64, 16, 16), epochs=(None,) * 5, seed=0)
    drawn = collections.Counter(mixture[i].set for i in range(22 * 100))
    assert [drawn[s] for s in range(5)] == [800, 800, 400, 100, 100]


def test_epochs_differ_and_seeds_differ():
    def order(seed, epoch):
        mixture = Mixture(lengths=(50,), weights=(1,), epochs=(None,), seed=seed)
        return [mixture[50 * epoch + i].index for i in range(50)]

    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert order(0, 1) == order(0, 1)


def test_large_sets_are_shuffled_without_a_table():
    mixture = Mixture(lengths=(10**10,), weights=(1,), epochs=(None,), seed=3)
    indices = [mixture[i].index for i in range(1000)]
    assert len(set(indices)) == 1000
    assert max(indices) > 9 * 10**9


def test_unshuffled_is_in_order():
    mixture = Mixture(lengths=(5,), weights=(1,), epochs=(2,), seed=0, shuffle=False)
    assert [mixture[i].index for i in range(len(mixture))] == [0, 1, 2, 3, 4] * 2


def test_every_reader_reads_all_sets():
    """Two equal sets and two readers that read every second position: both must read from both sets."""
    mixture = Mixture(lengths=(100, 100), weights=(1, 1), epochs=(None, None), seed=0)
    for reader in range(2):
        drawn = collections.Counter(mixture[reader + 2 * i].set for i in range(500))
        assert min(drawn.values()) > 180


def test_invalid_mixtures_raise_a_clear_error():
    with pytest.raises(UserError, match="is empty"):
        Mixture(lengths=(3, 0), weights=(1, 1), epochs=(None, None), seed=0)
    with pytest.raises(UserError, match="positive"):
        Mixture(lengths=(3,), weights=(0,), epochs=(None,), seed=0)
    with pytest.raises(UserError, match="epochs"):
        Mixture(lengths=(3,), weights=(1,), epochs=(0,), seed=0)
    with pytest.raises(UserError, match="some would read nothing"):
        check_shards(3, shards=4, names=["tiny"])
