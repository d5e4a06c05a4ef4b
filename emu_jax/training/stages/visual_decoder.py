"""The U-Net: predict the noise mixed into a picture, given Emu's embeddings of it, both stored or computed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.diffusion.config import UNetConfig
from emu_jax.diffusion.losses import min_snr_weights, squared_errors
from emu_jax.diffusion.schedule import NoiseSchedule, add_noise, prediction_target, standard_noise
from emu_jax.diffusion.unet import UNet
from emu_jax.diffusion.vae import Posterior
from emu_jax.errors import UserError
from emu_jax.layers.stack import Remat
from emu_jax.losses import Mean
from emu_jax.training.stage import Batch, LossOutput
from emu_jax.training.stages.frozen import FrozenModels


@dataclasses.dataclass(frozen=True)
class VisualDecoderTrainingConfig:
    """How the U-Net is trained.

    Attributes:
      condition_dropout: share of examples that see the unconditional embeddings instead (10% in the paper).
      min_snr_gamma: Hang et al. 2023; None weighs every timestep alike, as the paper does.
      dtype: the U-Net's compute type.
    """

    condition_dropout: float = 0.1
    min_snr_gamma: float | None = None
    dtype: str = "float32"
    remat: Remat = Remat.NONE

    def __post_init__(self) -> None:
        if not 0 <= self.condition_dropout <= 1:
            raise UserError(f"condition_dropout must lie between 0 and 1, not {self.condition_dropout}.")


@dataclasses.dataclass(frozen=True)
class VisualDecoderStage:
    """Parameters lie under `unet`.

    Batches hold `latent_mean` and `latent_log_variance` `[B h w C]`, the autoencoder's posterior (latents are drawn
    from it anew in every step), and `conditioning[B Q D]`; or, with `frozen`, captioned pictures that these are
    computed from.

    Attributes:
      unconditional: embeddings `[Q D]` of the empty prompt.
      scaling_factor: the autoencoder's.
      frozen: the models that compute; their parameters lie beside the U-Net's, have no moments and never change.
    """

    model: UNetConfig
    batch_size: int
    unconditional: np.ndarray = dataclasses.field(compare=False)
    scaling_factor: float
    schedule: NoiseSchedule = dataclasses.field(default_factory=NoiseSchedule)
    config: VisualDecoderTrainingConfig = dataclasses.field(default_factory=VisualDecoderTrainingConfig)
    frozen: FrozenModels | None = None
    name: str = "visual_decoder"

    def __post_init__(self) -> None:
        width = self.model.cross_attention_dim
        if self.unconditional.ndim != 2 or self.unconditional.shape[-1] != width:
            raise UserError(
                f"The unconditional embeddings have the shape {self.unconditional.shape}; the U-Net takes [Q, {width}]."
            )

    @property
    def trainable(self) -> tuple[str, ...]:
        """The U-Net alone."""
        return (r"^unet/",)

    @property
    def loss_weights(self) -> dict[str, float]:
        """One term."""
        return {"noise": 1.0}

    @property
    def unet(self) -> UNet:
        """The model."""
        return UNet(self.model, remat=self.config.remat, dtype=jnp.dtype(self.config.dtype))

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch."""
        size = self.model.sample_size
        if self.frozen is not None:
            pixels = size * self.frozen.vae.factor
            return self.frozen.batch_spec(batch_size=self.batch_size, picture_size=pixels)
        latents = jax.ShapeDtypeStruct((self.batch_size, size, size, self.model.in_channels), jnp.float32)
        conditioning = jax.ShapeDtypeStruct((self.batch_size, *self.unconditional.shape), jnp.float32)
        return {"latent_mean": latents, "latent_log_variance": latents, "conditioning": conditioning}

    def init(self, rng: jax.Array) -> Any:
        """Boxed parameters."""
        size = self.model.size_multiple
        latents = jnp.zeros((1, size, size, self.model.in_channels))
        conditioning = jnp.zeros((1, *self.unconditional.shape))
        frozen = {} if self.frozen is None else self.frozen.init(rng)
        return frozen | {"unet": self.unet.init(rng, latents, jnp.zeros((1,), jnp.int32), conditioning)["params"]}

    def loss_denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """Pictures."""
        return {"noise": jnp.float32(len(next(iter(batch.values()))))}

    def losses(self, params: Any, batch: Batch, rng: jax.Array, *, deterministic: bool) -> LossOutput:
        """The (weighted) squared error at one random timestep per picture; deterministic drops no condition."""
        draws, noises, times, drops = jax.random.split(rng, 4)
        if self.frozen is None:
            posterior = Posterior(mean=batch["latent_mean"], log_variance=batch["latent_log_variance"])
            conditioning = batch["conditioning"]
        else:
            posterior, conditioning = self.frozen.posterior(params, batch), self.frozen.conditioning(params, batch)
        latents = self.scaling_factor * posterior.sample(draws)
        noise = standard_noise(noises, latents.shape)
        count = len(latents)
        timesteps = jax.random.randint(times, (count,), 0, self.schedule.num_train_timesteps)
        if not deterministic:
            dropped = jax.random.bernoulli(drops, self.config.condition_dropout, (count, 1, 1))
            conditioning = jnp.where(dropped, jnp.asarray(self.unconditional, conditioning.dtype), conditioning)

        noisy = add_noise(self.schedule, latents, noise, timesteps)
        output = self.unet.apply({"params": params["unet"]}, noisy, timesteps, conditioning)
        errors = squared_errors(output, prediction_target(self.schedule, latents, noise, timesteps))
        metrics = {"squared_error": Mean(errors.sum(), jnp.float32(count))}
        for quarter in range(4):
            chosen = (timesteps * 4 // self.schedule.num_train_timesteps == quarter).astype(jnp.float32)
            metrics[f"squared_error/quarter_{quarter}"] = Mean((errors * chosen).sum(), chosen.sum())
        if self.config.min_snr_gamma is not None:
            errors *= min_snr_weights(self.schedule, timesteps, gamma=self.config.min_snr_gamma)
        return LossOutput(sums={"noise": errors.sum()}, metrics=metrics)
