"""The losses and their formulas."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.diffusion.losses import gaussian_divergences, min_snr_weights, squared_errors
from emu_jax.diffusion.schedule import NoiseSchedule, Prediction, add_noise, prediction_target
from emu_jax.diffusion.vae import Posterior

SCHEDULE = NoiseSchedule()
RNG = np.random.default_rng(0)


def test_min_snr_weights():
    timesteps = jnp.array([0, 500, 999])
    a = SCHEDULE.alphas_cumprod[np.array(timesteps)]
    snr = a / (1 - a)
    assert snr[0] > 5 > snr[1]
    np.testing.assert_allclose(min_snr_weights(SCHEDULE, timesteps), np.minimum(snr, 5) / snr, rtol=1e-5)
    velocity = dataclasses.replace(SCHEDULE, prediction_type=Prediction.VELOCITY)
    np.testing.assert_allclose(min_snr_weights(velocity, timesteps), np.minimum(snr, 5) / (snr + 1), rtol=1e-5)


def test_squared_errors_are_means_of_each_example():
    predictions = jnp.zeros((2, 2, 2, 3)).at[1, 0, 0, 0].set(6.0)
    np.testing.assert_allclose(squared_errors(predictions, jnp.zeros_like(predictions)), [0.0, 3.0])


@pytest.mark.parametrize(
    ("mean", "log_variance", "divergence"),
    [(0.0, 0.0, 0.0), (2.0, 0.0, 2.0), (0.0, np.log(4.0), 0.5 * (4 - 1 - np.log(4.0)))],
)
def test_divergence_from_the_standard_normal(mean, log_variance, divergence):
    posterior = Posterior(mean=jnp.full((1, 2, 2, 4), mean), log_variance=jnp.full((1, 2, 2, 4), log_variance))
    np.testing.assert_allclose(gaussian_divergences(posterior), [divergence], rtol=1e-5, atol=1e-6)


def test_noise_and_velocity_determine_the_latents():
    latents, noise = (jnp.asarray(RNG.normal(size=(3, 2, 2, 4)), jnp.float32) for _ in range(2))
    timesteps = jnp.array([0, 400, 999])
    noisy = add_noise(SCHEDULE, latents, noise, timesteps)
    a = SCHEDULE.alphas_cumprod[np.array(timesteps)][:, None, None, None]
    velocity_schedule = dataclasses.replace(SCHEDULE, prediction_type=Prediction.VELOCITY)
    velocity = prediction_target(velocity_schedule, latents, noise, timesteps)
    np.testing.assert_allclose(np.sqrt(a) * noisy - np.sqrt(1 - a) * velocity, latents, atol=1e-5)
    np.testing.assert_allclose(np.sqrt(1 - a) * noisy + np.sqrt(a) * velocity, noise, atol=1e-5)
    np.testing.assert_array_equal(prediction_target(SCHEDULE, latents, noise, timesteps), noise)
