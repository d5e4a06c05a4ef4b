"""The U-Net: predict the noise added to an image's latents, conditioned on Emu's embeddings of the image.

Latents and embeddings are either stored, or computed in each step by frozen models.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Average

from emu_jax.bounds import Checked, Dtype, Fraction, Positive
from emu_jax.diffusion.config import UNetConfig
from emu_jax.diffusion.losses import min_snr_weights, squared_errors
from emu_jax.diffusion.schedule import NoiseSchedule, add_noise, prediction_target, standard_noise
from emu_jax.diffusion.unet import UNet
from emu_jax.diffusion.vae import Posterior
from emu_jax.errors import UserError
from emu_jax.layers.stack import Remat
from emu_jax.training.stage import Batch, LossOutput
from emu_jax.training.stages.frozen import FrozenModels


@dataclasses.dataclass(frozen=True)
class VisualDecoderTrainingConfig(Checked):
    """Training of the U-Net.

    Attributes:
      condition_dropout: fraction of examples that get the unconditional embeddings instead (10% in the paper).
      min_snr_gamma: gamma of min-SNR weighting (Hang et al. 2023); None weights all timesteps equally, as in the paper.
      dtype: compute dtype of the U-Net.
      remat: activations to recompute in the backward pass.
    """

    condition_dropout: Fraction = 0.1
    min_snr_gamma: Positive | None = None
    dtype: Dtype = "float32"
    remat: Remat = Remat.NONE


@dataclasses.dataclass(frozen=True)
class VisualDecoderStage:
    """The trained parameters are under `unet`.

    Batches hold `latent_mean` and `latent_log_variance` `[B h w C]`, the autoencoder's posterior (each step samples new
    latents from it), and `conditioning[B Q D]`. With `frozen`, they hold captioned images instead, from which the step
    computes both.

    Attributes:
      model: sizes of the U-Net.
      batch_size: rows of a global batch.
      unconditional: embeddings `[Q D]` of the empty prompt.
      scaling_factor: scaling factor of the autoencoder's latents.
      schedule: noise schedule, and the quantity that the U-Net predicts.
      config: settings of the training.
      frozen: models that compute latents and conditioning; their parameters are stored next to the U-Net's, without
        moments, and never change.
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
                f"The unconditional embeddings have the shape {self.unconditional.shape}; the U-Net requires "
                f"[Q, {width}]."
            )

    @property
    def trainable(self) -> tuple[str, ...]:
        """Only the U-Net."""
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
        """Return the shapes of a global batch."""
        size = self.model.sample_size
        if self.frozen is not None:
            pixels = size * self.frozen.vae.factor
            return self.frozen.batch_spec(batch_size=self.batch_size, target_size=pixels)
        latents = jax.ShapeDtypeStruct((self.batch_size, size, size, self.model.in_channels), jnp.float32)
        conditioning = jax.ShapeDtypeStruct((self.batch_size, *self.unconditional.shape), jnp.float32)
        return {"latent_mean": latents, "latent_log_variance": latents, "conditioning": conditioning}

    def init(self, rng: jax.Array) -> Any:
        """Return boxed parameters."""
        size = self.model.size_multiple
        latents = jnp.zeros((1, size, size, self.model.in_channels))
        conditioning = jnp.zeros((1, *self.unconditional.shape))
        frozen = {} if self.frozen is None else self.frozen.init(rng)
        return frozen | {"unet": self.unet.init(rng, latents, jnp.zeros((1,), jnp.int32), conditioning)["params"]}

    def loss_denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the number of images."""
        return {"noise": jnp.float32(len(next(iter(batch.values()))))}

    def losses(self, params: Any, batch: Batch, rng: jax.Array, *, deterministic: bool) -> LossOutput:
        """Return the (weighted) squared error at one random timestep per image; deterministic drops no condition."""
        latent_rng, noise_rng, timestep_rng, dropout_rng = jax.random.split(rng, 4)
        if self.frozen is None:
            posterior = Posterior(mean=batch["latent_mean"], log_variance=batch["latent_log_variance"])
            conditioning = batch["conditioning"]
        else:
            posterior, conditioning = self.frozen.posterior(params, batch), self.frozen.conditioning(params, batch)
        latents = self.scaling_factor * posterior.sample(latent_rng)
        noise = standard_noise(noise_rng, latents.shape)
        count = len(latents)
        timesteps = jax.random.randint(timestep_rng, (count,), 0, self.schedule.num_train_timesteps)
        if not deterministic:
            dropped = jax.random.bernoulli(dropout_rng, self.config.condition_dropout, (count, 1, 1))
            conditioning = jnp.where(dropped, jnp.asarray(self.unconditional, conditioning.dtype), conditioning)

        noisy = add_noise(self.schedule, latents, noise, timesteps)
        output = self.unet.apply({"params": params["unet"]}, noisy, timesteps, conditioning)
        errors = squared_errors(output, prediction_target(self.schedule, latents, noise, timesteps))
        metrics = {"squared_error": Average(errors.sum(), jnp.float32(count))}
        for quarter in range(4):
            in_quarter = (timesteps * 4 // self.schedule.num_train_timesteps == quarter).astype(jnp.float32)
            metrics[f"squared_error/quarter_{quarter}"] = Average((errors * in_quarter).sum(), in_quarter.sum())
        if self.config.min_snr_gamma is not None:
            errors *= min_snr_weights(self.schedule, timesteps, gamma=self.config.min_snr_gamma)
        return LossOutput(sums={"noise": errors.sum()}, metrics=metrics)
