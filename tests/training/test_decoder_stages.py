"""The stages of the visual decoder: losses, dropped conditions, weights, and learning of one batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emu_jax.diffusion.config import CROSS_DOWN, CROSS_UP, UNetConfig, VAEConfig
from emu_jax.errors import UserError
from emu_jax.sharding.specs import unbox
from emu_jax.training.stage import Stage
from emu_jax.training.stages.vae import VAEStage, VAETrainingConfig, to_unit_range
from emu_jax.training.stages.visual_decoder import VisualDecoderStage, VisualDecoderTrainingConfig

WIDTH, QUERIES, BATCH = 6, 3, 8
UNET = UNetConfig(
    sample_size=4,
    block_out_channels=(8,),
    down_block_types=(CROSS_DOWN,),
    up_block_types=(CROSS_UP,),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=2,
    cross_attention_dim=WIDTH,
)
VAE = VAEConfig(block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, sample_size=4)


def decoder_stage(**config) -> VisualDecoderStage:
    return VisualDecoderStage(
        model=UNET,
        batch_size=BATCH,
        unconditional=np.full((QUERIES, WIDTH), 0.5, np.float32),
        scaling_factor=0.5,
        config=VisualDecoderTrainingConfig(**config),
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(BATCH, 4, 4, 4)).astype(np.float32)
    conditioning = rng.normal(size=(BATCH, QUERIES, WIDTH)).astype(np.float32)
    return {"latent_mean": mean, "latent_log_variance": np.full_like(mean, -30.0), "conditioning": conditioning}


@pytest.fixture(scope="module")
def params():
    made = unbox(jax.jit(decoder_stage().init)(jax.random.key(0)))
    # Not the initial zeros of the output layers, with which the output would not depend on the conditioning.
    return jax.tree.map(lambda leaf: leaf + 0.1, made)


def losses(stage: Stage, params, batch, *, deterministic: bool):
    return jax.jit(lambda p, b: stage.losses(p, b, jax.random.key(1), deterministic=deterministic))(params, batch)


def test_a_batch_has_the_shapes_of_the_spec(batch):
    spec = decoder_stage().batch_spec()
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in spec.items()} == {
        name: (array.shape, array.dtype) for name, array in batch.items()
    }


def test_dropped_conditions_become_the_unconditional_embeddings(params, batch):
    all_dropped = losses(decoder_stage(condition_dropout=1.0), params, batch, deterministic=False)
    empty = batch | {"conditioning": np.full_like(batch["conditioning"], 0.5)}
    none_dropped = losses(decoder_stage(condition_dropout=0.0), params, empty, deterministic=False)
    np.testing.assert_allclose(all_dropped.sums["noise"], none_dropped.sums["noise"], rtol=1e-5)
    conditional = losses(decoder_stage(condition_dropout=1.0), params, batch, deterministic=True)
    assert abs(conditional.sums["noise"] - all_dropped.sums["noise"]) > 1e-4 * abs(conditional.sums["noise"])


def test_min_snr_weights_the_loss_but_not_the_logged_error(params, batch):
    plain, weighted = (
        losses(decoder_stage(min_snr_gamma=gamma), params, batch, deterministic=True) for gamma in (None, 5.0)
    )
    np.testing.assert_allclose(plain.sums["noise"], plain.metrics["squared_error"].total, rtol=1e-6)
    np.testing.assert_allclose(weighted.metrics["squared_error"].total, plain.sums["noise"], rtol=1e-5)
    assert weighted.sums["noise"] < plain.sums["noise"]
    quarters = [plain.metrics[f"squared_error/quarter_{quarter}"] for quarter in range(4)]
    assert sum(float(quarter.count) for quarter in quarters) == BATCH
    np.testing.assert_allclose(sum(float(quarter.total) for quarter in quarters), plain.sums["noise"], rtol=1e-5)


def test_embeddings_of_another_width_are_an_error():
    with pytest.raises(UserError, match=r"shape \(3, 7\); the U-Net requires \[Q, 6\]"):
        VisualDecoderStage(
            model=UNET, batch_size=BATCH, unconditional=np.zeros((QUERIES, WIDTH + 1)), scaling_factor=1.0
        )


def test_the_autoencoder_learns_one_batch():
    stage = VAEStage(model=VAE, batch_size=2)
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 1, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    batch = {"images": jnp.asarray(images)}
    assert stage.batch_spec()["images"].shape == images.shape
    params = unbox(jax.jit(stage.init)(jax.random.key(0)))
    optimizer = optax.adam(1e-2)

    def total(params, rng):
        sums = stage.losses(params, batch, rng, deterministic=False).sums
        weights = stage.loss_denominators(batch)
        return sum(stage.loss_weights[name] * sums[name] / weights[name] for name in sums)

    @jax.jit
    def learn(params):
        def step(carry, rng):
            params, state = carry
            loss, gradient = jax.value_and_grad(total)(params, rng)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), loss

        keys = jax.random.split(jax.random.key(1), 60)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1]

    history = learn(params)
    assert history[-1] < 0.3 * history[0]


def test_the_divergence_has_the_configured_weight():
    weights = VAEStage(model=VAE, batch_size=2, config=VAETrainingConfig(divergence_weight=1e-6)).loss_weights
    assert weights == {"absolute_error": 1.0, "squared_error": 1.0, "divergence": 1e-6}


def test_pixels_are_in_minus_one_to_one():
    np.testing.assert_allclose(to_unit_range(jnp.array([0, 255], jnp.uint8)), [-1.0, 1.0])
