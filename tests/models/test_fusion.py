"""The picture of the docstring, and what lies outside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.models.fusion import insert_visual_embeddings

IMAGE = 9
TOKENS = jnp.asarray([[1, 7, IMAGE, IMAGE, 8, 5, 7, IMAGE, IMAGE, 8]])


def visual(rows, images=2):
    """Embedding q of image i in row b is the number 100 b + 10 i + q + 1000."""
    b, i, q = np.indices((rows, images, 2))
    return jnp.asarray(1000.0 + 100 * b + 10 * i + q)[..., None] * jnp.ones(3)


def test_the_kth_place_takes_the_kth_embedding():
    placed = insert_visual_embeddings(jnp.zeros((1, 10, 3)), visual(1), TOKENS == IMAGE)
    assert np.asarray(placed)[0, :, 0].tolist() == [0, 0, 1000, 1001, 0, 0, 0, 1010, 1011, 0]


def test_rows_do_not_mix_and_unused_slots_go_nowhere():
    tokens = jnp.asarray([[IMAGE, IMAGE, 5, 5], [5, IMAGE, IMAGE, 5]])
    placed = np.asarray(insert_visual_embeddings(jnp.zeros((2, 4, 3)), visual(2), tokens == IMAGE))[..., 0]
    assert placed.tolist() == [[1000, 1001, 0, 0], [0, 1100, 1101, 0]]


def test_gradients_reach_the_embedding_that_was_placed_and_no_other():
    def total(embeddings):
        placed = insert_visual_embeddings(jnp.zeros((1, 10, 3)), embeddings, TOKENS == IMAGE)
        return jnp.sum(placed[:, 2])

    gradient = np.asarray(jax.grad(total)(visual(1)))[0, :, :, 0]
    assert gradient.tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_type_is_that_of_the_tokens(dtype):
    assert insert_visual_embeddings(jnp.zeros((1, 10, 3), dtype), visual(1), TOKENS == IMAGE).dtype == dtype
