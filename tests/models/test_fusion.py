"""The example of the docstring, and edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.models.fusion import insert_visual_embeddings

IMAGE = 9
TOKENS = jnp.asarray([[1, 7, IMAGE, IMAGE, 8, 5, 7, IMAGE, IMAGE, 8]])


def visual_embeddings(rows, images=2):
    """Return embeddings `[rows, images, 2, 3]`; embedding q of image i in row b is 1000 + 100 b + 10 i + q."""
    b, i, q = np.indices((rows, images, 2))
    return jnp.asarray(1000.0 + 100 * b + 10 * i + q)[..., None] * jnp.ones(3)


def test_the_kth_image_token_gets_the_kth_embedding():
    inserted = insert_visual_embeddings(jnp.zeros((1, 10, 3)), visual_embeddings(1), TOKENS == IMAGE)
    assert np.asarray(inserted)[0, :, 0].tolist() == [0, 0, 1000, 1001, 0, 0, 0, 1010, 1011, 0]


def test_rows_are_independent_and_unused_embeddings_are_dropped():
    tokens = jnp.asarray([[IMAGE, IMAGE, 5, 5], [5, IMAGE, IMAGE, 5]])
    inserted = np.asarray(insert_visual_embeddings(jnp.zeros((2, 4, 3)), visual_embeddings(2), tokens == IMAGE))[..., 0]
    assert inserted.tolist() == [[1000, 1001, 0, 0], [0, 1100, 1101, 0]]


def test_gradients_flow_only_to_the_inserted_embedding():
    def total(embeddings):
        inserted = insert_visual_embeddings(jnp.zeros((1, 10, 3)), embeddings, TOKENS == IMAGE)
        return jnp.sum(inserted[:, 2])

    gradient = np.asarray(jax.grad(total)(visual_embeddings(1)))[0, :, :, 0]
    assert gradient.tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_result_has_the_dtype_of_the_token_embeddings(dtype):
    assert insert_visual_embeddings(jnp.zeros((1, 10, 3), dtype), visual_embeddings(1), TOKENS == IMAGE).dtype == dtype
