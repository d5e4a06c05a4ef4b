"""Noise schedule: the amount of noise in the latents at each timestep, and the target that the U-Net predicts."""

import dataclasses
import enum
import functools
import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.bounds import Between, Checked, CountOrZero, Tokens
from emu_jax.config import from_config_dict
from emu_jax.errors import UserError
from emu_jax.typing import Array, Float, Int, typechecked


class Betas(enum.Enum):
    """Growth of the variance that is added per timestep, from `beta_start` to `beta_end`."""

    LINEAR = "linear"
    SCALED_LINEAR = "scaled_linear"  # its square root grows linearly


class Prediction(enum.Enum):
    """Meaning of the U-Net's output."""

    EPSILON = "epsilon"  # the noise
    VELOCITY = "v_prediction"  # sqrt(a) noise - sqrt(1 - a) latents (Salimans & Ho 2022)


class Spacing(enum.Enum):
    """Choice of the sampler's timesteps among the trained ones (Lin et al. 2023, table 2)."""

    LEADING = "leading"
    LINSPACE = "linspace"
    TRAILING = "trailing"


@dataclasses.dataclass(frozen=True)
class NoiseSchedule(Checked):
    """A variance-preserving process. The defaults are those of Stable Diffusion v1.5.

    `set_alpha_to_one`: the last sampling step ends without noise, not with the noise of timestep 0.
    """

    num_train_timesteps: Tokens = 1000
    beta_start: Annotated[float, Between(1e-9, 0.999)] = 0.00085
    beta_end: Annotated[float, Between(1e-9, 0.999)] = 0.012
    beta_schedule: Betas = Betas.SCALED_LINEAR
    prediction_type: Prediction = Prediction.EPSILON
    timestep_spacing: Spacing = Spacing.LEADING
    steps_offset: CountOrZero = 1
    set_alpha_to_one: bool = False

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """The fraction of variance that is from the latents at each timestep: float64 `[num_train_timesteps]`."""
        power = 2 if self.beta_schedule is Betas.SCALED_LINEAR else 1
        ends = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        return np.cumprod(1.0 - np.linspace(*ends, self.num_train_timesteps) ** power)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """Read diffusers' `scheduler_config.json`. Missing fields get the defaults of diffusers for its class.

        Raises:
          UserError: an option is not supported.
        """
        name = str(config.get("_class_name") or "PNDMScheduler")
        if name not in _DEFAULTS:
            raise UserError(
                f"The scheduler {name} has no noise schedule of Stable Diffusion (beta_start, beta_end), which this "
                f"decoder needs. Supported: {', '.join(sorted(_DEFAULTS))}."
            )
        for key, supported in _FIXED.items():
            if config.get(key, _DEFAULTS[name].get(key, supported)) != supported:
                raise UserError(
                    f"The scheduler's {key} must be {supported}. Set it in scheduler/scheduler_config.json."
                )
        names = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in (_BASE | _DEFAULTS[name] | dict(config)).items() if key in names}
        return from_config_dict(cls, values, path="The scheduler's config")

    def to_diffusers(self) -> dict[str, Any]:
        """Return the `scheduler_config.json` of `diffusers.PNDMScheduler`, as in the release."""
        values = dataclasses.asdict(self)
        values = {key: value.value if isinstance(value, enum.Enum) else value for key, value in values.items()}
        return {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "clip_sample": False, **values}


# Options of diffusers with the only values that are supported here.
_FIXED: dict[str, Any] = {
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "timestep_type": "discrete",
    "trained_betas": None,
    "clip_sample": False,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "use_karras_sigmas": False,
    "skip_prk_steps": True,
}

# Defaults of diffusers 0.42: those of most classes, and where each class with such a schedule differs.
_BASE: dict[str, Any] = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "set_alpha_to_one": False,
}
_LINSPACE: dict[str, Any] = {"timestep_spacing": "linspace"}
_KARRAS: dict[str, Any] = _LINSPACE | {"beta_start": 0.00085, "beta_end": 0.012}
_DDIM: dict[str, Any] = {"set_alpha_to_one": True, "clip_sample": True}
_LCM: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": True,
}  # fmt: skip
_DEFAULTS: dict[str, dict[str, Any]] = {
    "PNDMScheduler": {},
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDPMScheduler": {"clip_sample": True},
    "DDPMParallelScheduler": {"clip_sample": True},
    "DPMSolverMultistepScheduler": _LINSPACE,
    "DPMSolverSinglestepScheduler": _LINSPACE,
    "DPMSolverSDEScheduler": _KARRAS,
    "DEISMultistepScheduler": _LINSPACE,
    "UniPCMultistepScheduler": _LINSPACE,
    "SASolverScheduler": _LINSPACE,
    "EulerDiscreteScheduler": _LINSPACE,
    "EulerAncestralDiscreteScheduler": _LINSPACE,
    "LMSDiscreteScheduler": _LINSPACE,
    "HeunDiscreteScheduler": _KARRAS,
    "KDPM2DiscreteScheduler": _KARRAS,
    "KDPM2AncestralDiscreteScheduler": _KARRAS,
    "LCMScheduler": _LCM,
    "TCDScheduler": _LCM,
}


@typechecked
def add_noise(
    schedule: NoiseSchedule,
    latents: Float[Array, "B height width C"],
    noise: Float[Array, "B height width C"],
    timesteps: Int[Array, "B"],
) -> Float[Array, "B height width C"]:
    """Return `sqrt(a) latents + sqrt(1 - a) noise`, a = `alphas_cumprod[timesteps]`."""
    signal, deviation = _amplitudes(schedule, timesteps)
    return signal * latents + deviation * noise


@typechecked
def prediction_target(
    schedule: NoiseSchedule,
    latents: Float[Array, "B height width C"],
    noise: Float[Array, "B height width C"],
    timesteps: Int[Array, "B"],
) -> Float[Array, "B height width C"]:
    """Return the target of the U-Net: the noise or the velocity, by `schedule.prediction_type`."""
    if schedule.prediction_type is Prediction.EPSILON:
        return noise
    return velocity(schedule, latents, noise, timesteps)


@typechecked
def velocity(
    schedule: NoiseSchedule,
    latents: Float[Array, "B height width C"],
    noise: Float[Array, "B height width C"],
    timesteps: Int[Array, "B"],
) -> Float[Array, "B height width C"]:
    """Return `sqrt(a) noise - sqrt(1 - a) latents` (Salimans & Ho 2022)."""
    signal, deviation = _amplitudes(schedule, timesteps)
    return signal * noise - deviation * latents


@typechecked
def signal_to_noise(schedule: NoiseSchedule, timesteps: Int[Array, "B"]) -> Float[Array, "B"]:
    """Return `a / (1 - a)` at each timestep."""
    a = schedule.alphas_cumprod
    return jnp.asarray(a / (1.0 - a), jnp.float32)[timesteps]


@typechecked
def standard_noise(rng: jax.Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Return standard normal noise. It is drawn flat, because XLA compiles a 4-D draw for seconds on CPUs."""
    return jax.random.normal(rng, (math.prod(shape),)).reshape(shape)


def _amplitudes(schedule: NoiseSchedule, timesteps: Int[Array, "B"]) -> tuple[Array, Array]:
    a = schedule.alphas_cumprod
    parts = np.sqrt(a), np.sqrt(1.0 - a)
    signal, deviation = (jnp.asarray(part, jnp.float32)[timesteps][:, None, None, None] for part in parts)
    return signal, deviation
