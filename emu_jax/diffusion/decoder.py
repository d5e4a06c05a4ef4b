"""The visual decoder: U-Net, autoencoder, schedule and their parameters in one object, from disk and back."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.diffusion.samplers import Sampler, SamplerTable, Trajectory, guided, run_sampler, sampler_table
from emu_jax.diffusion.schedule import NoiseSchedule, standard_noise
from emu_jax.diffusion.unet import UNet
from emu_jax.diffusion.vae import VAE, Posterior
from emu_jax.errors import UserError
from emu_jax.sharding.specs import unbox
from emu_jax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class SampleOutput:
    """Sampled latents, as the U-Net sees them. `np.asarray` of it is the latents.

    `trajectory` holds the latents after each model call (PNDM makes one call more than there are steps), if asked for.
    """

    latents: Float[Array, "B height width C"]
    trajectory: Float[Array, "S B height width C"] | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.latents, dtype=dtype) if copy else np.asarray(self.latents, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class VisualDecoder:
    """Turns embeddings into pictures. Arrays in and out are float32, channels last.

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
        """A decoder with the parameters of the parts that are `trained`, and new ones for the others."""
        modules = UNet(unet, dtype=dtype), VAE(vae, dtype=dtype)
        rngs = jax.random.split(jax.random.key(seed))
        new = {
            "unet": lambda: jax.jit(modules[0].init)(rngs[0], *unet_inputs(unet)),
            "vae": lambda: jax.jit(modules[1].init)(rngs[1], *vae_inputs(vae)),
        }
        params = {part: unbox(draw()["params"]) for part, draw in new.items() if part not in (trained or {})}
        params |= trained or {}
        return cls(*modules, schedule=schedule or NoiseSchedule(), params=params)

    def predict_noise(self, latents: Any, timesteps: Any, conditioning: Any) -> Float[Array, "B height width C"]:
        """The U-Net's output: the noise in `latents`, or their velocity where the schedule says `v_prediction`.

        Args:
          latents: `[B height width C]`, scaled.
          timesteps: `[B]`, or one for all.
          conditioning: `[B Q D]`, or `[1 Q D]` for all.
        """
        latents = self._latents(latents)
        conditioning = self._embeddings(conditioning, "conditioning", len(latents))
        timesteps = np.asarray(timesteps)
        if timesteps.shape not in ((), (1,), (len(latents),)) or not np.issubdtype(timesteps.dtype, np.integer):
            raise UserError(f"timesteps must be one integer or {len(latents)}, not {timesteps.dtype}{timesteps.shape}.")
        timesteps = jnp.broadcast_to(jnp.asarray(timesteps, jnp.int32), (len(latents),))
        return _predict(self.unet, self.params["unet"], latents, timesteps, conditioning)

    def encode(self, images: Any) -> Posterior:
        """The posterior of images `[B height width 3]` in [-1, 1]; its latents are not scaled."""
        images = _array(images, "images", 4)
        if images.shape[-1] != self.vae.config.in_channels:
            raise UserError(f"images must have {self.vae.config.in_channels} channels, not {images.shape[-1]}.")
        _check_multiple("image", images.shape[1:3], self.vae.config.factor)
        return _encode(self.vae, self.params["vae"], images)

    def decode(self, latents: Any) -> Float[Array, "B height width C"]:
        """Images, about in [-1, 1], of scaled latents `[B height width C]`."""
        latents = _array(latents, "latents", 4)
        if latents.shape[-1] != self.vae.config.latent_channels:
            raise UserError(f"latents must have {self.vae.config.latent_channels} channels, not {latents.shape[-1]}.")
        return _decode(self.vae, self.params["vae"], latents)

    def sample(
        self,
        conditioning: Any,
        unconditional: Any = None,
        *,
        latents: Any = None,
        sampler: Sampler | str = Sampler.PNDM,
        steps: int = 50,
        guidance_scale: float = 7.5,
        seed: int = 0,
        height: int | None = None,
        width: int | None = None,
        return_trajectory: bool = False,
    ) -> SampleOutput:
        """From noise to latents in one compiled program; `decode` makes pictures of them.

        Args:
          conditioning: `[B Q D]`, what the pictures should show.
          unconditional: `[B Q D]` or `[1 Q D]`; may be left out when guidance_scale is 1.
          latents: the noise to start from; by default drawn from `seed`, picture by picture, so that a picture does
            not depend on how many are made beside it.
          sampler: "pndm" (the release's), "ddim" or "dpm-solver++" (good at 20 steps).
          guidance_scale: 1 is the conditioning alone, 0 the unconditional alone.
          height: of the picture in pixels, as `width`; by default what the U-Net was trained at.

        Raises:
          UserError: a size, width of embeddings, number of steps or scale that does not fit.
        """
        check_sampling(sampler=sampler, steps=steps, guidance_scale=guidance_scale)
        taken, given = self.unet.config.in_channels, self.unet.config.out_channels
        if taken != given:
            raise UserError(f"This U-Net takes {taken} channels and gives {given}; to sample, it must give as many.")
        table = sampler_table(Sampler(sampler), self.schedule, steps)
        embeddings = self._embeddings(conditioning, "conditioning")
        noise = self._noise(len(embeddings), seed, height, width) if latents is None else self._latents(latents)
        embeddings = self._embeddings(conditioning, "conditioning", len(noise))
        if unconditional is not None:
            unconditional = self._embeddings(unconditional, "unconditional", len(noise))
            if unconditional.shape != embeddings.shape:
                raise UserError(
                    f"unconditional must have the shape of the conditioning, {embeddings.shape}, "
                    f"not {unconditional.shape}."
                )
        elif guidance_scale != 1:
            raise UserError(
                f"A guidance_scale of {guidance_scale} wants the unconditional embeddings; give them, or 1."
            )
        trajectory = sample_latents(
            self.unet,
            self.params["unet"],
            noise,
            embeddings,
            None if guidance_scale == 1 else unconditional,
            jnp.float32(guidance_scale),
            table,
            return_steps=return_trajectory,
        )
        return SampleOutput(latents=trajectory.latents, trajectory=trajectory.steps)

    def latent_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width of a picture's latents; by default of a picture as the U-Net was trained on.

        Raises:
          UserError: a height or width in pixels that the U-Net cannot halve as often as it does.
        """
        factor, config = self.vae.config.factor, self.unet.config
        size = tuple(config.sample_size * factor if pixels is None else pixels for pixels in (height, width))
        _check_multiple("picture", size, factor * config.size_multiple)
        return size[0] // factor, size[1] // factor

    def _noise(self, batch: int, seed: int, height: int | None, width: int | None) -> Array:
        shape = (*self.latent_size(height, width), self.unet.config.in_channels)
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(batch))
        return jax.vmap(lambda key: standard_noise(key, shape))(keys)

    def _latents(self, latents: Any) -> Array:
        latents, config = _array(latents, "latents", 4), self.unet.config
        if latents.shape[-1] != config.in_channels:
            raise UserError(f"latents must have {config.in_channels} channels, not {latents.shape[-1]}.")
        _check_multiple("latent", latents.shape[1:3], config.size_multiple)
        return latents

    def _embeddings(self, embeddings: Any, name: str, batch: int | None = None) -> Array:
        embeddings, width = _array(embeddings, name, 3), self.unet.config.cross_attention_dim
        if embeddings.shape[-1] != width:
            raise UserError(f"{name} is {embeddings.shape[-1]} wide, but the U-Net takes embeddings of width {width}.")
        if batch is not None:
            if len(embeddings) not in (1, batch):
                raise UserError(f"{name} has {len(embeddings)} rows for {batch} pictures; give {batch}, or 1 for all.")
            embeddings = jnp.broadcast_to(embeddings, (batch, *embeddings.shape[1:]))
        return embeddings


def check_sampling(*, sampler: Sampler | str, steps: int, guidance_scale: float) -> None:
    """Raises UserError for a sampler that there is not, no steps, or a guidance scale below 0."""
    known = [one.value for one in Sampler]
    if (sampler.value if isinstance(sampler, Sampler) else sampler) not in known:
        raise UserError(f"The sampler must be one of {', '.join(map(repr, known))}, not {sampler!r}.")
    if steps < 1:
        raise UserError(f"steps must be 1 or more, not {steps}.")
    if not 0 <= guidance_scale < float("inf"):
        raise UserError(f"guidance_scale must be 0 or more, not {guidance_scale}.")


def unet_inputs(config: UNetConfig) -> tuple[Array, Array, Array]:
    """The smallest inputs of a U-Net (latents, timesteps, conditioning), for making its parameters or their shapes."""
    size = config.size_multiple
    latents = jnp.zeros((1, size, size, config.in_channels))
    return latents, jnp.zeros((1,), jnp.int32), jnp.zeros((1, 1, config.cross_attention_dim))


def vae_inputs(config: VAEConfig) -> tuple[Array]:
    """The smallest input of an autoencoder (images)."""
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
def sample_latents(
    unet: UNet,
    params: Any,
    noise: Array,
    conditioning: Array,
    unconditional: Array | None,
    guidance_scale: Array,
    table: SamplerTable,
    *,
    return_steps: bool,
) -> Trajectory:
    """From noise to latents, one model call a row of `table`; the guidance's two halves go through it together."""

    def predict(latents: Array, timestep: Array, embeddings: Array) -> Array:
        timesteps = jnp.broadcast_to(timestep, (len(latents),))
        return unet.apply({"params": params}, latents, timesteps, embeddings)

    if unconditional is None:
        step = lambda latents, timestep: predict(latents, timestep, conditioning)
    else:
        step = guided(predict, conditioning=conditioning, unconditional=unconditional, guidance_scale=guidance_scale)
    return run_sampler(step, table, noise, return_steps=return_steps)


def _array(value: Any, name: str, rank: int) -> Array:
    array = jnp.asarray(value, jnp.float32)
    if array.ndim != rank or 0 in array.shape:
        raise UserError(f"{name} must have {rank} dimensions, none empty, not the shape {array.shape}.")
    return array


def _check_multiple(what: str, size: tuple[int, ...], multiple: int) -> None:
    for name, length in zip(("height", "width"), size, strict=True):
        if length < 1 or length % multiple:
            raise UserError(f"The {what} {name} must be a multiple of {multiple}, not {length}.")
