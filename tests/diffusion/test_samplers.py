"""Samplers with exact predictors instead of a network, so that every property is exact."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.diffusion.samplers import Sampler, guided, run_sampler, sampler_table
from emu_jax.diffusion.schedule import NoiseSchedule, Prediction, Spacing, prediction_target
from emu_jax.errors import UserError

SCHEDULE = NoiseSchedule(set_alpha_to_one=True)
CLEAN = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
NOISE = jax.random.normal(jax.random.key(1), CLEAN.shape)


def exact_predictor(schedule: NoiseSchedule, clean: jax.Array):
    """Return the optimal predictor for data with the single image `clean`."""
    a = jnp.asarray(schedule.alphas_cumprod, jnp.float32)

    def predict(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        noise = (latents - jnp.sqrt(a[timestep]) * clean) / jnp.sqrt(1 - a[timestep])
        return prediction_target(schedule, clean, noise, jnp.broadcast_to(timestep, (len(latents),)))

    return predict


@pytest.mark.parametrize(
    ("sampler", "spacing", "prediction"),
    [
        (Sampler.PNDM, Spacing.LEADING, Prediction.EPSILON),
        (Sampler.DDIM, Spacing.LINSPACE, Prediction.EPSILON),
        (Sampler.DDIM, Spacing.LEADING, Prediction.VELOCITY),
        (Sampler.DPM_SOLVER_PP, Spacing.TRAILING, Prediction.EPSILON),
        (Sampler.DPM_SOLVER_PP, Spacing.LINSPACE, Prediction.VELOCITY),
    ],
)
def test_the_only_image_is_found(sampler, spacing, prediction):
    schedule = dataclasses.replace(SCHEDULE, timestep_spacing=spacing, prediction_type=prediction)
    found = run_sampler(exact_predictor(schedule, CLEAN), sampler_table(sampler, schedule, 10), NOISE).latents
    np.testing.assert_allclose(found, CLEAN, atol=1e-4)


def test_both_prediction_types_have_the_same_trajectory():
    # Not PNDM: its average over the outputs of several timesteps is exact for the noise and not for the velocity.
    trajectories = []
    for prediction in Prediction:
        schedule = dataclasses.replace(SCHEDULE, prediction_type=prediction)
        table = sampler_table(Sampler.DPM_SOLVER_PP, schedule, 6)
        trajectories.append(run_sampler(exact_predictor(schedule, CLEAN), table, NOISE, return_steps=True).steps)
    np.testing.assert_allclose(*trajectories, atol=1e-4)


def test_pndm_visits_the_second_timestep_twice_and_restarts_there():
    table = sampler_table(Sampler.PNDM, NoiseSchedule(), 4)
    np.testing.assert_array_equal(table.timesteps, [751, 501, 501, 251, 1])
    np.testing.assert_array_equal(table.restart, [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(table.store, [1, 0, 1, 1, 1])
    ratios = table.outputs / table.outputs.sum(axis=1, keepdims=True)
    expected = [[1, 0, 0, 0], [1 / 2, 1 / 2, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0]]
    np.testing.assert_allclose(ratios[:4], expected, rtol=1e-5)


def test_timesteps_of_the_spacings():
    def visited(sampler, spacing):
        schedule = NoiseSchedule(timestep_spacing=spacing, steps_offset=1)
        return sampler_table(sampler, schedule, 4).timesteps.tolist()

    assert visited(Sampler.DDIM, Spacing.LEADING) == [751, 501, 251, 1]
    assert visited(Sampler.DDIM, Spacing.LINSPACE) == [999, 666, 333, 0]
    assert visited(Sampler.DDIM, Spacing.TRAILING) == [999, 749, 499, 249]
    assert visited(Sampler.DPM_SOLVER_PP, Spacing.LEADING) == [801, 601, 401, 201]
    assert visited(Sampler.DPM_SOLVER_PP, Spacing.LINSPACE) == [999, 749, 500, 250]


def test_the_latents_after_each_call_are_returned_only_on_request():
    table = sampler_table(Sampler.DDIM, SCHEDULE, 3)
    output = run_sampler(exact_predictor(SCHEDULE, CLEAN), table, NOISE, return_steps=True)
    assert output.steps.shape == (3, *CLEAN.shape)
    np.testing.assert_array_equal(output.steps[-1], output.latents)
    assert run_sampler(exact_predictor(SCHEDULE, CLEAN), table, NOISE).steps is None


def test_guidance_interpolates_and_extrapolates():
    def predict(latents, timestep, conditioning):
        return latents + conditioning.mean(axis=(1, 2))[:, None, None, None]

    conditioning, unconditional = jnp.full((2, 5, 3), 2.0), jnp.full((2, 5, 3), 0.5)
    for scale, added in ((0.0, 0.5), (1.0, 2.0), (3.0, 5.0)):
        step = guided(predict, conditioning=conditioning, unconditional=unconditional, guidance_scale=scale)
        np.testing.assert_allclose(step(NOISE, jnp.int32(0)), NOISE + added, rtol=1e-6)


@pytest.mark.parametrize("sampler", Sampler)
def test_more_steps_than_timesteps_are_refused(sampler):
    with pytest.raises(UserError, match="Use fewer"):
        sampler_table(sampler, SCHEDULE, 1001)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_have_finite_and_small_coefficients(steps):
    for sampler in Sampler:
        table = sampler_table(sampler, NoiseSchedule(), steps)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(table))
        assert (np.abs(table.base) <= 20).all()
