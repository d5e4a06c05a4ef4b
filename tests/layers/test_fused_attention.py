"""The TPU attention kernel, interpreted on a CPU, against attention in plain JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.layers import fused_attention as module
from emu_jax.layers.dot_product_attention import dot_product_attention
from emu_jax.layers.masks import packed_causal_mask
from emu_jax.sharding.mesh import MeshConfig, make_mesh

fused_attention = functools.partial(module.fused_attention, interpret=True)

SEGMENTS = jnp.asarray([[1] * 50 + [2] * 60 + [0] * 18, [1] * 128])


def arrays(length, *, heads=2, kv_heads=2, width=16, batch=2):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((batch, length, heads, width), (batch, length, kv_heads, width), (batch, length, kv_heads, width))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def both_passes(attend, inputs, valid):
    """Return the outputs at valid positions, and the gradients of the inputs."""
    out, pullback = jax.vjp(attend, *inputs)
    weights = jax.random.normal(jax.random.key(1), out.shape) * valid[:, :, None, None]
    return [out * valid[:, :, None, None], *pullback(weights)]


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_packed_causal_rows_match_the_dense_mask(kv_heads):
    inputs, valid = arrays(128, kv_heads=kv_heads), SEGMENTS > 0
    fused = both_passes(
        lambda q, k, v: fused_attention(q, k, v, scale=0.25, segment_ids=SEGMENTS, causal=True), inputs, valid
    )
    mask = packed_causal_mask(SEGMENTS)
    plain = both_passes(lambda q, k, v: dot_product_attention(q, k, v, scale=0.25, mask=mask), inputs, valid)
    for ours, theirs in zip(fused, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_length_that_is_not_a_multiple_of_the_lanes_is_padded():
    """Such as the 257 tokens of the vision encoder, whose heads are 88 wide."""
    inputs, valid = arrays(33, width=24), jnp.ones((2, 33))
    fused = both_passes(
        lambda q, k, v: fused_attention(q, k, v, scale=0.2, segment_ids=None, causal=False), inputs, valid
    )
    plain = both_passes(lambda q, k, v: dot_product_attention(q, k, v, scale=0.2), inputs, valid)
    for ours, theirs in zip(fused, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_unmasked_self_attention_over_several_blocks():
    """Such as the latent pixels in the U-Net, whose heads are 40 wide; two blocks of queries and of keys."""
    inputs, valid = arrays(1024, heads=1, kv_heads=1, width=40, batch=1), jnp.ones((1, 1024))
    fused = both_passes(
        lambda q, k, v: fused_attention(q, k, v, scale=0.2, segment_ids=None, causal=False), inputs, valid
    )
    plain = both_passes(lambda q, k, v: dot_product_attention(q, k, v, scale=0.2), inputs, valid)
    for ours, theirs in zip(fused, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_rows_and_heads_are_sharded_over_the_mesh():
    inputs = arrays(128, batch=4)
    segments = jnp.concatenate([SEGMENTS, SEGMENTS])
    attend = lambda q, k, v: fused_attention(q, k, v, scale=0.25, segment_ids=segments, causal=True)
    expected = attend(*inputs)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        sharded = jax.jit(attend)(*inputs)
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_allclose(sharded, expected, atol=1e-6)
