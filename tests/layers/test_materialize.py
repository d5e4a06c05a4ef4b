"""Materialization for TPUs does not change results beyond the rounding of the compute dtype."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.layers import materialize as module
from emu_jax.layers.masks import packed_causal_mask
from emu_jax.layers.saved import NAMES
from emu_jax.layers.stack import Remat
from emu_jax.models.config import DecoderConfig, VisionConfig
from emu_jax.models.eva_clip import EvaVisionTransformer
from emu_jax.models.llama import LlamaDecoder

DECODER = DecoderConfig(vocab_size=32, width=32, num_layers=2, num_heads=2, num_kv_heads=2, mlp_dim=64)
VISION = VisionConfig(image_size=8, patch_size=4, width=32, num_layers=2, num_heads=2, mlp_dim=64)


def decoder(dtype):
    model = LlamaDecoder(dataclasses.replace(DECODER, remat=Remat.FULL, saved_activations=NAMES), dtype=dtype)
    positions = jnp.broadcast_to(jnp.arange(6), (2, 6))
    mask = packed_causal_mask(jnp.ones((2, 6), jnp.int32))
    return model, np.sin(np.arange(384)).reshape(2, 6, 32), {"positions": positions, "mask": mask}


def vision(dtype):
    model = EvaVisionTransformer(dataclasses.replace(VISION, remat=Remat.FULL, saved_activations=NAMES), dtype=dtype)
    return model, np.sin(np.arange(384)).reshape(2, 8, 8, 3), {}


def value_and_gradients(build, dtype):
    model, x, options = build(dtype)
    x = jnp.asarray(x, dtype if build is decoder else jnp.float32)
    params = nn.meta.unbox(jax.jit(lambda: model.init(jax.random.key(1), x, **options))())

    def loss(params):
        out = jax.tree.leaves(model.apply(params, x, **options))[0].astype(jnp.float32)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("build", [decoder, vision])
@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_loss_and_gradients_are_unchanged(build, dtype, rounding, monkeypatch):
    plain_value, plain = value_and_gradients(build, dtype)
    monkeypatch.setattr(module, "on_tpu", lambda: True)
    value, materialized = value_and_gradients(build, dtype)
    np.testing.assert_allclose(value, plain_value, rtol=rounding, atol=rounding)
    for ours, theirs in zip(jax.tree.leaves(materialized), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=rounding * np.abs(theirs).max())


def test_activation_and_its_gradients_are_materialized_once_per_pass(monkeypatch):
    def run(gate, up, kernel):
        return jnp.sum(module.activation_matmul(lambda gate, up: nn.silu(gate) * up, (gate, up), kernel))

    inputs = (jnp.ones((3, 4)), jnp.ones((3, 4)), jnp.ones((4, 2)))
    count = lambda: str(jax.make_jaxpr(jax.grad(run, argnums=(0, 1, 2)))(*inputs)).count("optimization_barrier")
    assert count() == 0
    monkeypatch.setattr(module, "on_tpu", lambda: True)
    assert count() == 4  # inputs, activation; its gradient; activation with the inputs' gradients
