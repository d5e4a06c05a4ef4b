"""The visual decoder: U-Net, autoencoder, schedule and their parameters in one object."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.diffusion.options import ImageOptions
from emu_jax.diffusion.samplers import Sampler, SamplerTable, Trajectory, guided, run_sampler, sampler_table
from emu_jax.diffusion.schedule import NoiseSchedule, standard_noise
from emu_jax.diffusion.unet import UNet
from emu_jax.diffusion.vae import VAE, Posterior
from emu_jax.errors import UserError
from emu_jax.sharding.specs import unbox
from emu_jax.typing import Array, Float, Int, typechecked


@dataclasses.dataclass(frozen=True)
class SampleOutput:
    """Sampled latents, scaled for the U-Net. `np.asarray` of it returns the latents.

    Attributes:
      latents: float32 `[B, height, width, C]`.
      trajectory: the latents after each model call, `[S, B, height, width, C]`, if requested. PNDM makes one call more
        than the number of steps.
    """

    latents: Array
    trajectory: Array | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.latents, dtype=dtype) if copy else np.asarray(self.latents, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class VisualDecoder:
    """A decoder from embeddings to images. Arrays are float32, channels last.

    Attributes:
      params: `{"unet": ..., "vae": ...}`, unboxed.
      initialized: PyTorch names of the parameters that the folder had in another width and that are new.
      source: the folder that it was read from, which may have a safety checker.
    """

    unet: UNet
    vae: VAE
    schedule: NoiseSchedule
    params: dict[str, Any]
    initialized: tuple[str, ...] = ()
    source: Path | None = None

    @classmethod
    def create(
        cls,
        unet: UNetConfig,
        vae: VAEConfig,
        *,
        schedule: NoiseSchedule | None = None,
        seed: int = 0,
        dtype: Dtype = jnp.float32,
        trained: dict[str, Any] | None = None,
    ) -> "VisualDecoder":
        """Return a decoder with the parameters in `trained` ("unet", "vae"); the other part is initialized."""
        modules = UNet(unet, dtype=dtype), VAE(vae, dtype=dtype)
        rngs = jax.random.split(jax.random.key(seed))
        init = {
            "unet": lambda: jax.jit(modules[0].init)(rngs[0], *unet_inputs(unet)),
            "vae": lambda: jax.jit(modules[1].init)(rngs[1], *vae_inputs(vae)),
        }
        params = {part: unbox(draw()["params"]) for part, draw in init.items() if part not in (trained or {})}
        params |= trained or {}
        return cls(*modules, schedule=schedule or NoiseSchedule(), params=params)

    def predict_noise(self, latents: Any, timesteps: Any, conditioning: Any) -> Array:
        """Return the U-Net's output: the noise in `latents`, or their velocity if the schedule has `v_prediction`.

        Args:
          latents: `[B, height, width, C]`, scaled.
          timesteps: `[B]`, or one for all.
          conditioning: `[B, Q, D]`, or `[1, Q, D]` for all.
        """
        latents = self._check_latents(latents)
        conditioning = self._check_embeddings(conditioning, "conditioning", len(latents))
        timesteps = np.asarray(timesteps)
        if timesteps.shape not in ((), (1,), (len(latents),)) or not np.issubdtype(timesteps.dtype, np.integer):
            raise UserError(f"timesteps must be one integer or {len(latents)}, not {timesteps.dtype}{timesteps.shape}.")
        timesteps = jnp.broadcast_to(jnp.asarray(timesteps, jnp.int32), (len(latents),))
        return _predict(self.unet, self.params["unet"], latents, timesteps, conditioning)

    def encode(self, images: Any) -> Posterior:
        """Return the posterior of images `[B, height, width, 3]` in [-1, 1]. Its latents are not scaled."""
        images = _check_array(images, "images", 4)
        if images.shape[-1] != self.vae.config.in_channels:
            raise UserError(f"images must have {self.vae.config.in_channels} channels, not {images.shape[-1]}.")
        _check_multiple("image", images.shape[1:3], self.vae.config.factor)
        return _encode(self.vae, self.params["vae"], images)

    def decode(self, latents: Any) -> Array:
        """Return images, approximately in [-1, 1], of scaled latents `[B, height, width, C]`."""
        latents = _check_array(latents, "latents", 4)
        if latents.shape[-1] != self.vae.config.latent_channels:
            raise UserError(f"latents must have {self.vae.config.latent_channels} channels, not {latents.shape[-1]}.")
        return _decode(self.vae, self.params["vae"], latents)

    def sample(
        self,
        conditioning: Any,
        unconditional: Any = None,
        *,
        latents: Any = None,
        return_trajectory: bool = False,
        **options: Any,
    ) -> SampleOutput:
        """Sample latents from noise in one compiled program. `decode` turns them into images.

        Args:
          conditioning: `[B, Q, D]`, the content of the images.
          unconditional: `[B, Q, D]` or `[1, Q, D]`. Not needed if guidance_scale is 1.
          latents: the noise to start from. Default: drawn from the seed for each image, so that an image does not
            depend on the batch size.
          return_trajectory: return the latents after each model call too.
          options: fields of `ImageOptions`.

        Raises:
          UserError: an image size, an embedding width, or an option does not fit.
        """
        chosen = ImageOptions(**options)
        inputs, outputs = self.unet.config.in_channels, self.unet.config.out_channels
        if inputs != outputs:
            raise UserError(f"This U-Net has {inputs} input and {outputs} output channels. Sampling needs as many.")
        table = sampler_table(Sampler(chosen.sampler), self.schedule, chosen.steps)
        embeddings = self._check_embeddings(conditioning, "conditioning")
        noise = self._noise(len(embeddings), chosen) if latents is None else self._check_latents(latents)
        embeddings = self._check_embeddings(conditioning, "conditioning", len(noise))
        if unconditional is not None:
            unconditional = self._check_embeddings(unconditional, "unconditional", len(noise))
            if unconditional.shape != embeddings.shape:
                raise UserError(
                    f"unconditional must have the shape of the conditioning, {embeddings.shape}, "
                    f"not {unconditional.shape}."
                )
        elif chosen.guidance_scale != 1:
            raise UserError(
                f"A guidance_scale of {chosen.guidance_scale} requires unconditional embeddings. Pass them, or use 1."
            )
        trajectory = sample_latents(
            self.unet,
            self.params["unet"],
            noise,
            embeddings,
            None if chosen.guidance_scale == 1 else unconditional,
            jnp.float32(chosen.guidance_scale),
            table,
            return_steps=return_trajectory,
        )
        return SampleOutput(latents=trajectory.latents, trajectory=trajectory.steps)

    def latent_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Return the height and width of an image's latents. Default: those in the training of the U-Net.

        Raises:
          UserError: the height or width in pixels is not a multiple of the autoencoder's downsampling factor.
        """
        factor, config = self.vae.config.factor, self.unet.config
        size = tuple(config.sample_size * factor if pixels is None else pixels for pixels in (height, width))
        _check_multiple("image", size, factor)
        return size[0] // factor, size[1] // factor

    def _noise(self, batch: int, options: ImageOptions) -> Array:
        shape = (*self.latent_size(options.height, options.width), self.unet.config.in_channels)
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(options.seed)))(jnp.arange(batch))
        return jax.vmap(lambda key: standard_noise(key, shape))(keys)

    def _check_latents(self, latents: Any) -> Array:
        latents, config = _check_array(latents, "latents", 4), self.unet.config
        if latents.shape[-1] != config.in_channels:
            raise UserError(f"latents must have {config.in_channels} channels, not {latents.shape[-1]}.")
        return latents

    def _check_embeddings(self, embeddings: Any, name: str, batch: int | None = None) -> Array:
        embeddings, width = _check_array(embeddings, name, 3), self.unet.config.cross_attention_dim
        if embeddings.shape[-1] != width:
            raise UserError(f"{name} has width {embeddings.shape[-1]}, but the U-Net expects width {width}.")
        if batch is not None:
            if len(embeddings) not in (1, batch):
                raise UserError(f"{name} has {len(embeddings)} rows for {batch} images. Pass {batch}, or 1 for all.")
            embeddings = jnp.broadcast_to(embeddings, (batch, *embeddings.shape[1:]))
        return embeddings


def unet_inputs(config: UNetConfig) -> tuple[Array, Array, Array]:
    """Return the smallest inputs of a U-Net (latents, timesteps, conditioning), to initialize its parameters."""
    size = config.size_multiple
    latents = jnp.zeros((1, size, size, config.in_channels))
    return latents, jnp.zeros((1,), jnp.int32), jnp.zeros((1, 1, config.cross_attention_dim))


def vae_inputs(config: VAEConfig) -> tuple[Array]:
    """Return the smallest input of an autoencoder (images), to initialize its parameters."""
    return (jnp.zeros((1, config.factor, config.factor, config.in_channels)),)


@functools.partial(jax.jit, static_argnames="unet")
def _predict(unet: UNet, params: Any, latents: Array, timesteps: Array, conditioning: Array) -> Array:
    return unet.apply({"params": params}, latents, timesteps, conditioning)


@functools.partial(jax.jit, static_argnames="vae")
def _encode(vae: VAE, params: Any, images: Array) -> Posterior:
    return vae.apply({"params": params}, images, method="encode")


@functools.partial(jax.jit, static_argnames="vae")
def _decode(vae: VAE, params: Any, latents: Array) -> Array:
    return vae.apply({"params": params}, latents / vae.config.scaling_factor, method="decode")


@functools.partial(jax.jit, static_argnames=("unet", "return_steps"))
@typechecked
def sample_latents(
    unet: UNet,
    params: Any,
    noise: Float[Array, "B height width C"],
    conditioning: Float[Array, "B Q D"],
    unconditional: Float[Array, "B Q D"] | None,
    guidance_scale: Float[Array, ""],
    table: SamplerTable,
    *,
    return_steps: bool,
) -> Trajectory:
    """Sample latents from noise with one model call per row of `table`, also with guidance."""

    def predict(latents: Array, timestep: Int[Array, ""], embeddings: Array) -> Array:
        timesteps = jnp.broadcast_to(timestep, (len(latents),))
        return unet.apply({"params": params}, latents, timesteps, embeddings)

    if unconditional is None:
        step = lambda latents, timestep: predict(latents, timestep, conditioning)
    else:
        step = guided(predict, conditioning=conditioning, unconditional=unconditional, guidance_scale=guidance_scale)
    return run_sampler(step, table, noise, return_steps=return_steps)


def _check_array(value: Any, name: str, rank: int) -> Array:
    array = jnp.asarray(value, jnp.float32)
    if array.ndim != rank or 0 in array.shape:
        raise UserError(f"{name} must have {rank} dimensions, none of them empty, not the shape {array.shape}.")
    return array


def _check_multiple(kind: str, size: tuple[int, ...], multiple: int) -> None:
    for name, length in zip(("height", "width"), size, strict=True):
        if length < 1 or length % multiple:
            raise UserError(f"The {kind} {name} must be a multiple of {multiple}, not {length}.")
