"""Scheduler configs and neutral fields as diffusers has them."""

import pytest

from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.diffusion.schedule import NoiseSchedule, Spacing
from emu_jax.errors import UserError


@pytest.mark.parametrize(
    ("name", "spacing", "beta_start"),
    [
        ("PNDMScheduler", Spacing.LEADING, 0.0001),
        ("EulerDiscreteScheduler", Spacing.LINSPACE, 0.0001),
        ("EulerAncestralDiscreteScheduler", Spacing.LINSPACE, 0.0001),
        ("UniPCMultistepScheduler", Spacing.LINSPACE, 0.0001),
        ("DPMSolverMultistepScheduler", Spacing.LINSPACE, 0.0001),
        ("HeunDiscreteScheduler", Spacing.LINSPACE, 0.00085),
        ("LCMScheduler", Spacing.LEADING, 0.00085),
    ],
)
def test_missing_fields_have_the_defaults_of_their_class(name, spacing, beta_start):
    schedule = NoiseSchedule.from_diffusers({"_class_name": name})
    assert schedule.timestep_spacing is spacing
    assert schedule.beta_start == beta_start


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "EDMEulerScheduler"]
)
def test_schedulers_without_such_a_schedule_are_refused_by_their_class(name):
    with pytest.raises(UserError, match=name):
        NoiseSchedule.from_diffusers({"_class_name": name, "num_train_timesteps": 1000})


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_clipping_is_the_default_of_some_classes(name):
    with pytest.raises(UserError, match="clip_sample"):
        NoiseSchedule.from_diffusers({"_class_name": name})
    NoiseSchedule.from_diffusers({"_class_name": name, "clip_sample": False})


def test_neutral_fields_are_accepted():
    fields = {
        "only_cross_attention": [False] * 4,
        "dropout": 0.1,
        "sample_size": [8, 8],
        "layers_per_block": [2, 2, 2, 2],
        "transformer_layers_per_block": [1, 1, 1, 1],
        "cross_attention_dim": [768] * 4,
        "act_fn": "swish",
        "mid_block_only_cross_attention": False,
        "time_embedding_dim": 1280,
    }
    assert UNetConfig.from_diffusers(fields) == UNetConfig(sample_size=8)
    assert VAEConfig.from_diffusers({"sample_size": [512, 512], "shift_factor": 0.0}) == VAEConfig()


@pytest.mark.parametrize(
    "fields", [{"only_cross_attention": [True, False, False, False]}, {"time_embedding_dim": 512}, {"act_fn": "gelu"}]
)
def test_fields_that_change_the_result_are_refused(fields):
    with pytest.raises(UserError, match=next(iter(fields))):
        UNetConfig.from_diffusers(fields)
