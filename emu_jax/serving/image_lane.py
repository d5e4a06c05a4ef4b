"""The visual decoder for several requests at once, each row at its own step of a separate sampler table."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.diffusion.decoder import VisualDecoder
from emu_jax.diffusion.samplers import HISTORY, Sampler, SamplerTable, sampler_table
from emu_jax.diffusion.schedule import standard_noise
from emu_jax.generation.options import ImageOptions
from emu_jax.typing import Array, Bool, Float, Int


@flax.struct.dataclass
class ImageState:
    """P rows, one image each; `call` counts its U-Net calls, `count` of which it needs.

    first: the noise that it started from. history: the last outputs, the newest first.
    """

    latents: Float[Array, "P h w C"]
    first: Float[Array, "P h w C"]
    history: tuple[Float[Array, "P h w C"], ...]
    conditioning: Float[Array, "P Q D"]
    unconditional: Float[Array, "P Q D"]
    guidance_scale: Float[Array, " P"]
    table: SamplerTable  # leaves [P, calls, ...]
    call: Int[Array, " P"]
    count: Int[Array, " P"]


@flax.struct.dataclass
class ImageStart:
    """The image that one row is to sample. `copy` numbers the images of one request, which differ in their noise."""

    row: Int[Array, ""]
    seed: Int[Array, ""]
    copy: Int[Array, ""]
    conditioning: Float[Array, "Q D"]
    unconditional: Float[Array, "Q D"]
    guidance_scale: Float[Array, ""]
    table: SamplerTable
    count: Int[Array, ""]


def padded_table(decoder: VisualDecoder, options: ImageOptions, calls: int) -> tuple[SamplerTable, int]:
    """Return the table of a request, padded to `calls` rows, and how many rows count.

    Raises:
      UserError: the schedule has fewer timesteps than the request has steps.
    """
    table = sampler_table(Sampler(options.sampler), decoder.schedule, options.steps)
    count = len(table.timesteps)
    pad = lambda column: np.pad(column, [(0, calls - count)] + [(0, 0)] * (column.ndim - 1))
    return jax.tree.map(pad, table), count


def empty_image_state(
    decoder: VisualDecoder, *, rows: int, height: int, width: int, calls: int, num_image_tokens: int
) -> ImageState:
    """Return the state with all rows free. `height` and `width` are in pixels."""
    shape = (rows, *decoder.latent_size(height, width), decoder.unet.config.in_channels)
    latents = jnp.zeros(shape)
    embeddings = jnp.zeros((rows, num_image_tokens, decoder.unet.config.cross_attention_dim))
    table, _ = padded_table(decoder, ImageOptions(steps=1), calls)
    return ImageState(
        latents=latents,
        first=latents,
        history=(latents,) * (HISTORY - 1),
        conditioning=embeddings,
        unconditional=embeddings,
        guidance_scale=jnp.ones(rows),
        table=jax.tree.map(lambda column: jnp.zeros((rows, *column.shape), column.dtype), table),
        call=jnp.zeros(rows, jnp.int32),
        count=jnp.zeros(rows, jnp.int32),
    )


def begin_image(params: Any, state: ImageState, start: ImageStart) -> ImageState:
    """Put an image's noise, drawn from its seed, and its conditioning into a row."""
    del params
    row = start.row
    put = lambda array, value: array.at[row].set(value)
    key = jax.random.fold_in(jax.random.key(start.seed), start.copy)
    noise = standard_noise(key, state.latents.shape[1:])
    return ImageState(
        latents=put(state.latents, noise),
        first=put(state.first, noise),
        history=tuple(put(outputs, jnp.zeros_like(noise)) for outputs in state.history),
        conditioning=put(state.conditioning, start.conditioning),
        unconditional=put(state.unconditional, start.unconditional),
        guidance_scale=put(state.guidance_scale, start.guidance_scale),
        table=jax.tree.map(put, state.table, start.table),
        call=put(state.call, 0),
        count=put(state.count, start.count),
    )


def sample(params: Any, state: ImageState, active: Bool[Array, " P"], *, unet: Any, calls: int) -> ImageState:
    """Run up to `calls` U-Net calls of the `active` rows."""

    def running(carry: tuple[jax.Array, ImageState]) -> jax.Array:
        return (carry[0] < calls) & jnp.any(active & (carry[1].call < carry[1].count))

    def one(carry: tuple[jax.Array, ImageState]) -> tuple[jax.Array, ImageState]:
        number, state = carry
        return number + 1, _sample_once(params, state, active & (state.call < state.count), unet=unet)

    return jax.lax.while_loop(running, one, (jnp.int32(0), state))[1]


def decode_image(params: Any, state: ImageState, row: jax.Array, *, vae: Any) -> jax.Array:
    """Return the image `[H, W, 3]` of a row's latents, about in [-1, 1]."""
    latents = jax.lax.dynamic_slice_in_dim(state.latents, row, 1, axis=0) / vae.config.scaling_factor
    return vae.apply({"params": params}, latents, method="decode")[0]


def _sample_once(params: Any, state: ImageState, live: jax.Array, *, unet: Any) -> ImageState:
    """One U-Net call for each `live` row: a step of `diffusion.samplers.run_sampler` with a table row per image."""
    rows = jnp.arange(len(live))
    call = jnp.minimum(state.call, jnp.maximum(state.count - 1, 0))
    row = jax.tree.map(lambda column: column[rows, call], state.table)
    wide = lambda column: column.reshape(-1, 1, 1, 1)
    halves = jnp.concatenate([state.unconditional, state.conditioning])
    latents = jnp.concatenate([state.latents, state.latents])
    timesteps = jnp.concatenate([row.timesteps, row.timesteps])
    without, within = jnp.split(unet.apply({"params": params}, latents, timesteps, halves), 2)
    scale = wide(state.guidance_scale)
    predicted = jnp.where(scale == 1, within, without + scale * (within - without))
    output = wide(row.from_latents) * state.latents + wide(row.from_output) * predicted
    candidates = (output, *state.history)
    moved = wide(row.base) * jnp.where(wide(row.restart) > 0, state.first, state.latents)
    moved += sum(wide(row.outputs[:, k]) * candidate for k, candidate in enumerate(candidates))
    keeps = wide(live & (row.store > 0))
    history = tuple(jnp.where(keeps, new, old) for new, old in zip(candidates, state.history, strict=False))
    return dataclasses.replace(
        state, latents=jnp.where(wide(live), moved, state.latents), history=history, call=state.call + live
    )
