"""The pictures of the docstrings, repeated."""

import jax.numpy as jnp
import numpy as np

from emu_jax.layers.masks import cached_causal_mask, packed_causal_mask


def picture(mask):
    return [" ".join("x" if seen else "." for seen in row) for row in np.asarray(mask)]


def test_packed_documents_do_not_see_one_another():
    mask = packed_causal_mask(jnp.asarray([[1, 1, 2, 2, 0]]))
    assert picture(mask[0]) == [
        "x . . . .",
        "x x . . .",
        ". . x . .",
        ". . x x .",
        ". . . . x",
    ]


def test_rows_have_their_own_masks():
    mask = packed_causal_mask(jnp.asarray([[1, 1, 1], [1, 2, 0]]))
    assert picture(mask[0]) == ["x . .", "x x .", "x x x"]
    assert picture(mask[1]) == ["x . .", ". x .", ". . x"]


def test_a_cache_shows_its_valid_slots_up_to_the_query():
    mask = cached_causal_mask(jnp.asarray([[False, True, True, True], [True] * 4]), jnp.asarray(2), 2)
    assert picture(mask[0]) == [". x x .", ". x x x"]
    assert picture(mask[1]) == ["x x x .", "x x x x"]
