"""The TPU's attention kernel, its arithmetic run on a CPU, against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.layers.attention import dot_product_attention
from emu_jax.layers.fused_attention import fused_attention
from emu_jax.layers.masks import packed_causal_mask
from emu_jax.sharding.mesh import MeshConfig, make_mesh

SEGMENTS = jnp.asarray([[1] * 50 + [2] * 60 + [0] * 18, [1] * 128])


def arrays(length, *, heads=2, kv_heads=2, width=16, batch=2):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((batch, length, heads, width), (batch, length, kv_heads, width), (batch, length, kv_heads, width))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def both_passes(attend, inputs, read):
    """Outputs and gradients of the places that somebody reads."""
    out, pull = jax.vjp(attend, *inputs)
    weights = jax.random.normal(jax.random.key(1), out.shape) * read[:, :, None, None]
    return [out * read[:, :, None, None], *pull(weights)]


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_packed_rows_are_attended_to_as_by_the_dense_mask(kv_heads):
    inputs, read = arrays(128, kv_heads=kv_heads), SEGMENTS > 0
    fused = both_passes(
        lambda q, k, v: fused_attention(q, k, v, scale=0.25, segment_ids=SEGMENTS, causal=True), inputs, read
    )
    mask = packed_causal_mask(SEGMENTS)
    plain = both_passes(lambda q, k, v: dot_product_attention(q, k, v, scale=0.25, mask=mask), inputs, read)
    for ours, theirs in zip(fused, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_length_that_does_not_fill_the_lanes_is_padded_and_the_padding_unseen():
    """As the 257 tokens of the vision encoder, whose heads are 88 wide."""
    inputs, read = arrays(33, width=24), jnp.ones((2, 33))
    fused = both_passes(
        lambda q, k, v: fused_attention(q, k, v, scale=0.2, segment_ids=None, causal=False), inputs, read
    )
    plain = both_passes(lambda q, k, v: dot_product_attention(q, k, v, scale=0.2), inputs, read)
    for ours, theirs in zip(fused, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_pictures_places_all_see_one_another():
    """As in the U-Net, whose heads are 40 wide; two blocks of queries and of keys."""
    inputs, read = arrays(1024, heads=1, kv_heads=1, width=40, batch=1), jnp.ones((1, 1024))
    fused = both_passes(
        lambda q, k, v: fused_attention(q, k, v, scale=0.2, segment_ids=None, causal=False), inputs, read
    )
    plain = both_passes(lambda q, k, v: dot_product_attention(q, k, v, scale=0.2), inputs, read)
    for ours, theirs in zip(fused, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_each_device_attends_in_its_own_rows_and_heads():
    inputs = arrays(128, batch=4)
    segments = jnp.concatenate([SEGMENTS, SEGMENTS])
    attend = lambda q, k, v: fused_attention(q, k, v, scale=0.25, segment_ids=segments, causal=True)
    whole = attend(*inputs)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        cut = jax.jit(attend)(*inputs)
    assert len(cut.sharding.device_set) == 8
    np.testing.assert_allclose(cut, whole, atol=1e-6)
