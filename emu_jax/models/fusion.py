"""Insert images into the sequence: visual embeddings replace the embeddings of `<image>` tokens."""

import jax.numpy as jnp

from emu_jax.typing import Array, Bool, Float, typechecked


@typechecked
def insert_visual_embeddings(
    token_embeddings: Float[Array, "B L D"],
    visual_embeddings: Float[Array, "B I Q D"],
    is_image_token: Bool[Array, "B L"],
) -> Float[Array, "B L D"]:
    """Replace the k-th `<image>` token of each row by the row's k-th visual embedding.

    The PyTorch release assigns `embeds[mask] = visual`, whose shape depends on the data. Counting `<image>` tokens and
    gathering by the count gives the same result with static shapes. For Q = 2 and images a and b:

        tokens      <s> [IMG] <image> <image> [/IMG] cat [IMG] <image> <image> [/IMG]
        slot                     0       1                        2       3
        result       .    .      a0      a1     .     .    .      b0      b1     .
    """
    batch, images, queries, width = visual_embeddings.shape
    flat = visual_embeddings.reshape(batch, images * queries, width).astype(token_embeddings.dtype)
    slots = jnp.clip(jnp.cumsum(is_image_token, axis=1) - 1, 0, images * queries - 1)
    gathered = jnp.take_along_axis(flat, slots[:, :, None], axis=1)
    return jnp.where(is_image_token[:, :, None], gathered, token_embeddings)
