"""The autoencoder: encode images to latents and decode them, with latents close to a standard normal."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from clu.metrics import Average

from emu_jax.bounds import Checked, Dtype, NonNegative
from emu_jax.diffusion.config import VAEConfig
from emu_jax.diffusion.losses import absolute_errors, gaussian_divergences, squared_errors
from emu_jax.diffusion.vae import VAE
from emu_jax.layers.stack import Remat
from emu_jax.training.stage import Batch, LossOutput
from emu_jax.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class VAETrainingConfig(Checked):
    """Training of the autoencoder.

    Rombach et al. (2022) also use a perceptual and an adversarial term, which the synthetic shapes world does not need.

    Attributes:
      divergence_weight: weight of the mean KL divergence per latent; the mean absolute and squared errors per pixel
        have weight 1. Rombach et al. use 1e-6.
      dtype: compute dtype.
      remat: activations to recompute in the backward pass.
    """

    divergence_weight: NonNegative = 1e-4
    dtype: Dtype = "float32"
    remat: Remat = Remat.NONE


@dataclasses.dataclass(frozen=True)
class VAEStage:
    """Batches hold `images[B H W 3]`, uint8; the parameters are under `vae`."""

    model: VAEConfig
    batch_size: int
    config: VAETrainingConfig = dataclasses.field(default_factory=VAETrainingConfig)
    name: str = "vae"

    @property
    def trainable(self) -> tuple[str, ...]:
        """Everything."""
        return (r"^vae/",)

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights of the three terms."""
        return {"absolute_error": 1.0, "squared_error": 1.0, "divergence": self.config.divergence_weight}

    @property
    def vae(self) -> VAE:
        """The model."""
        return VAE(self.model, remat=self.config.remat, dtype=jnp.dtype(self.config.dtype))

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a global batch."""
        size = self.model.sample_size
        return {"images": jax.ShapeDtypeStruct((self.batch_size, size, size, self.model.in_channels), jnp.uint8)}

    def init(self, rng: jax.Array) -> Any:
        """Return boxed parameters."""
        size = self.model.factor
        return {"vae": self.vae.init(rng, jnp.zeros((1, size, size, self.model.in_channels)))["params"]}

    def loss_denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the number of images."""
        return dict.fromkeys(self.loss_weights, jnp.float32(len(batch["images"])))

    def losses(self, params: Any, batch: Batch, rng: jax.Array, *, deterministic: bool) -> LossOutput:
        """Return the errors of images decoded from samples (deterministic: from means), and the divergence."""
        images = to_unit_range(batch["images"])
        variables = {"params": params["vae"]}
        posterior = self.vae.apply(variables, images, method="encode")
        latents = posterior.mean if deterministic else posterior.sample(rng)
        decoded = self.vae.apply(variables, latents, method="decode")
        terms = {
            "absolute_error": absolute_errors(decoded, images),
            "squared_error": squared_errors(decoded, images),
            "divergence": gaussian_divergences(posterior),
        }
        count = jnp.float32(len(images))
        mean_square = jnp.mean(jnp.square(posterior.mean))
        return LossOutput(
            sums={name: values.sum() for name, values in terms.items()},
            metrics={"latent_mean_square": Average(mean_square * count, count)},
        )


def to_unit_range(images: ArrayLike) -> jax.Array:
    """Convert uint8 pixels to float32 in [-1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1.0
