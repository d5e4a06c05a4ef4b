"""The masks that the docstrings draw."""

import jax.numpy as jnp
import numpy as np

from emu_jax.layers.masks import cached_causal_mask, packed_causal_mask


def drawing(mask):
    return [" ".join("x" if allowed else "." for allowed in row) for row in np.asarray(mask)]


def test_packed_documents_do_not_attend_to_each_other():
    mask = packed_causal_mask(jnp.asarray([[1, 1, 2, 2, 0]]))
    assert drawing(mask[0]) == [
        "x . . . .",
        "x x . . .",
        ". . x . .",
        ". . x x .",
        ". . . . x",
    ]


def test_rows_have_separate_masks():
    mask = packed_causal_mask(jnp.asarray([[1, 1, 1], [1, 2, 0]]))
    assert drawing(mask[0]) == ["x . .", "x x .", "x x x"]
    assert drawing(mask[1]) == ["x . .", ". x .", ". . x"]


def test_cached_queries_attend_to_valid_slots_up_to_their_own():
    mask = cached_causal_mask(jnp.asarray([[False, True, True, True], [True] * 4]), jnp.asarray(2), 2)
    assert drawing(mask[0]) == [". x x .", ". x x x"]
    assert drawing(mask[1]) == ["x x x .", "x x x x"]
