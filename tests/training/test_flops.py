"""Counts of useful operations, against formulas, XLA and frozen parts."""

import dataclasses

import jax
import numpy as np

from emu_jax.data.batch import BatchConfig
from emu_jax.layers.stack import Remat
from emu_jax.models.presets import emu_14b, emu_tiny
from emu_jax.training.flops import forward_flops
from emu_jax.training.stages.pretrain import LANGUAGE_SIDE, PretrainConfig, PretrainStage


def stage(**settings) -> PretrainStage:
    batch = BatchConfig(batch_size=4, length=64, max_images=2, image_size=32)
    return PretrainStage(emu_tiny(vocab_size=1000), batch, image_token_id=999, config=PretrainConfig(**settings))


def test_the_14b_counts_two_operations_per_parameter():
    found = forward_flops(emu_14b(), context=0)
    # Per token: 40 layers with 4 x 5120^2 + 3 x 5120 x 13824 parameters, and both heads.
    assert found.decoder == 2 * 40 * (4 * 5120**2 + 3 * 5120 * 13824)
    assert found.heads == 2 * 5120 * (32004 + 5120)
    # The vision encoder has 1.0e9 parameters; attention over 257 tokens adds two 257 x 257 x 1408 matmuls per layer.
    layers = 40 * 257 * (2 * (4 * 1408**2 + 2 * 1408 * 6144) + 4 * 1408 * 257)
    assert found.vision == layers + 2 * 256 * 588 * 1408
    # Twelve blocks: keys and values of 257 tokens; six 768 x 768 matrices, the MLP and attention of 32 queries.
    block = 257 * 2 * 2 * 1408 * 768 + 32 * (2 * (6 * 768**2 + 2 * 768 * 3072) + 4 * 768 * (16 + 257))
    assert found.causal_former == 12 * block + 2 * 32 * 768 * 5120


def test_the_count_agrees_with_xla():
    """XLA counts a scanned layer once, so each part has one layer; all tokens attend to all others."""
    config = emu_tiny(vocab_size=1000)
    config = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, num_layers=1, remat=Remat.NONE),
        decoder=dataclasses.replace(config.decoder, num_layers=1, remat=Remat.NONE),
    )
    one = dataclasses.replace(stage(monitors=False), model=config)
    params = jax.eval_shape(one.init, jax.random.key(0))
    spec = one.batch_spec()

    def forward(params, batch):
        return one.losses(params, batch, jax.random.key(0), deterministic=True).sums

    cost = jax.jit(forward).lower(jax.tree.map(lambda x: x, params), spec).cost_analysis()
    flops = forward_flops(config, context=64)  # XLA does not skip masked scores
    tokens, images = 4 * 64, 4 * 2
    ours = tokens * (flops.decoder + flops.heads) + images * (flops.vision + flops.causal_former)
    assert 1.0 < cost["flops"] / ours < 1.2  # XLA also counts norms, activations, losses and vocabulary padding


def test_frozen_parts_count_their_forward_pass_only():
    everything = stage().step_flops(tokens=256, images=8)
    frozen = stage(trainable=LANGUAGE_SIDE).step_flops(tokens=256, images=8)
    forward = forward_flops(emu_tiny(vocab_size=1000), context=32)
    np.testing.assert_allclose(everything - frozen, 8 * 2 * (forward.vision + forward.causal_former), rtol=1e-9)
