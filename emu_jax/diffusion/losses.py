"""Training losses of the U-Net and the autoencoder: one value per example, to be summed by the stages."""

import jax.numpy as jnp

from emu_jax.diffusion.schedule import NoiseSchedule, Prediction, signal_to_noise
from emu_jax.diffusion.vae import Posterior
from emu_jax.typing import Array, Float, Int, typechecked


@typechecked
def squared_errors(
    predictions: Float[Array, "B height width C"], targets: Float[Array, "B height width C"]
) -> Float[Array, "B"]:
    """Return the squared error of each example, averaged over pixels and channels."""
    return jnp.mean(jnp.square(predictions - targets), axis=(1, 2, 3))


@typechecked
def absolute_errors(
    predictions: Float[Array, "B height width C"], targets: Float[Array, "B height width C"]
) -> Float[Array, "B"]:
    """Return the absolute error of each example, averaged over pixels and channels."""
    return jnp.mean(jnp.abs(predictions - targets), axis=(1, 2, 3))


@typechecked
def min_snr_weights(schedule: NoiseSchedule, timesteps: Int[Array, "B"], *, gamma: float = 5.0) -> Float[Array, "B"]:
    """Return the weights of the squared errors that limit the influence of timesteps with little noise.

    `min(snr, gamma) / snr` for epsilon-prediction, `min(snr, gamma) / (snr + 1)` for velocity (Hang et al. 2023).
    """
    snr = signal_to_noise(schedule, timesteps)
    denominator = snr if schedule.prediction_type is Prediction.EPSILON else snr + 1
    return jnp.minimum(snr, gamma) / denominator


@typechecked
def gaussian_divergences(posterior: Posterior) -> Float[Array, "B"]:
    """Return the KL divergence (nats) of each example's posterior from a standard normal, averaged over its latents."""
    terms = jnp.square(posterior.mean) + jnp.exp(posterior.log_variance) - 1.0 - posterior.log_variance
    return 0.5 * jnp.mean(terms, axis=(1, 2, 3))
