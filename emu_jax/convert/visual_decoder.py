"""Load, save and import a visual decoder: a folder in diffusers' layout."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from emu_jax.checkpoints.model_config import CONFIG
from emu_jax.checkpoints.model_directory import VISUAL_DECODER
from emu_jax.convert.diffusion_folder import (
    REQUIRED,
    SCHEDULER,
    UNET,
    VAE,
    copy_screening,
    is_diffusers_folder,
    open_part,
    read_part_config,
    write_part,
)
from emu_jax.convert.diffusion_table import unet_table, vae_table
from emu_jax.convert.emu_config import read_config
from emu_jax.convert.table import Row, check_tensors, read_params, tree_to_tensors
from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.diffusion.decoder import VisualDecoder
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.diffusion.unet import UNet
from emu_jax.diffusion.vae import VAE as Autoencoder
from emu_jax.errors import UserError
from emu_jax.io.files import atomic_folder
from emu_jax.io.tensors import Progress, Tensor, no_progress
from emu_jax.layers.linear import lecun_normal


def load_visual_decoder(
    directory: str | os.PathLike[str],
    *,
    cross_attention_dim: int | None = None,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    seed: int = 0,
) -> VisualDecoder:
    """Read a diffusers folder (`unet/`, `vae/`, `scheduler/`; safetensors or bin).

    Args:
      directory: the folder.
      cross_attention_dim: width of the embeddings that condition the U-Net. If the folder has another width (SD v1.5:
        768), the key and value projections are drawn from `seed` and listed in `.initialized`.
      dtype: of the computation. Norms and softmax stay in float32.
      param_dtype: of the parameters.
      seed: of the initialized projections.

    Raises:
      UserError: a part is missing, or its weights do not fit its config. The message lists the names.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"There is no folder {directory}.")
    source = _open(directory, width=cross_attention_dim, seed=seed)
    params = {UNET: read_params(unet_table(source.unet), source.tensors[UNET])}
    params[VAE] = read_params(vae_table(source.vae), source.tensors[VAE])
    return VisualDecoder(
        UNet(source.unet, dtype=dtype, param_dtype=param_dtype),
        Autoencoder(source.vae, dtype=dtype, param_dtype=param_dtype),
        schedule=NoiseSchedule.from_diffusers(source.configs[SCHEDULER]),
        params=jax.tree.map(lambda array: jnp.asarray(array, param_dtype), params),
        initialized=source.initialized,
        source=directory,
    )


def save_visual_decoder(decoder: VisualDecoder, directory: str | os.PathLike[str]) -> None:
    """Write a folder that diffusers' `from_pretrained` opens. An older decoder is replaced after everything is written.

    The safety checker of `decoder.source` is copied.

    Raises:
      UserError: `directory` contains anything else than a decoder.
    """
    directory = Path(directory)
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir()) and not is_diffusers_folder(directory)):
        raise UserError(f"{directory} exists and is not a diffusers folder. Name another, or remove it first.")
    with atomic_folder(directory, replace=True) as temporary:
        for part, module, table in (
            (UNET, decoder.unet, unet_table(decoder.unet.config)),
            (VAE, decoder.vae, vae_table(decoder.vae.config)),
        ):
            write_part(temporary, part, module.config.to_diffusers(), tree_to_tensors(table, decoder.params[part]))
        write_part(temporary, SCHEDULER, decoder.schedule.to_diffusers())
        if decoder.source is not None:
            copy_screening(decoder.source, temporary)


@dataclasses.dataclass(frozen=True)
class ImportedDecoder:
    """The parts that were imported, and the PyTorch names of the U-Net's initialized projections."""

    parts: tuple[str, ...]
    initialized: tuple[str, ...]


def import_visual_decoder(
    source: Path, destination: Path, *, width: int | None = None, seed: int = 0, progress: Progress = no_progress
) -> ImportedDecoder:
    """Copy a diffusers folder to DESTINATION/visual_decoder as safetensors, checked against the conversion tables.

    Args:
      source: the folder. Its safety checker and feature extractor are copied if present.
      destination: a model directory, or a directory that will become one.
      width: of the embeddings that condition the U-Net. Default: that of the Emu in DESTINATION, or else the folder's.
        If the folder has another width (SD v1.5: 768), the key and value projections are initialized.
      seed: of the initialized projections.
      progress: called after each tensor.

    Raises:
      UserError: a part or a tensor is missing, of a different shape, or not finite; an option is not supported; or
        there is a visual decoder already.
    """
    target = destination / VISUAL_DECODER
    if target.exists():
        raise UserError(f"{target} exists already. Name another directory, or remove that one.")
    if width is None and (destination / CONFIG).is_file():
        width = read_config(destination / CONFIG).decoder.width
    opened = _open(source, width=width, seed=seed)
    _check_channels(opened.unet, opened.vae, source)
    with atomic_folder(target) as temporary:
        for part, config in opened.configs.items():
            tensors = [
                dataclasses.replace(t, name=name, read=t.read_finite) for name, t in opened.tensors[part].items()
            ]
            write_part(temporary, part, config, tensors, progress=progress)
        screening = copy_screening(source, temporary)
    return ImportedDecoder((*opened.configs, *screening), opened.initialized)


@dataclasses.dataclass(frozen=True)
class _Source:
    """An opened diffusers folder whose names and shapes have been checked."""

    unet: UNetConfig
    vae: VAEConfig
    configs: Mapping[str, dict[str, Any]]
    tensors: Mapping[str, dict[str, Tensor]]
    initialized: tuple[str, ...]


def _open(directory: Path, *, width: int | None, seed: int) -> _Source:
    configs = {part: read_part_config(directory, part) for part in REQUIRED}
    unet, vae = UNetConfig.from_diffusers(configs[UNET]), VAEConfig.from_diffusers(configs[VAE])
    NoiseSchedule.from_diffusers(configs[SCHEDULER])  # raises its error before any work
    tensors: dict[str, dict[str, Tensor]] = {SCHEDULER: {}}
    for part, table in ((UNET, unet_table(unet)), (VAE, vae_table(vae))):
        tensors[part] = open_part(directory, part)
        check_tensors(table, tensors[part], source=str(directory / part))
    initialized: dict[str, Tensor] = {}
    if width is not None and width != unet.cross_attention_dim:
        unet = dataclasses.replace(unet, cross_attention_dim=width)
        configs[UNET] = configs[UNET] | {"cross_attention_dim": width}
        initialized = initial_projections(unet, dtypes=tensors[UNET], seed=seed)
        tensors[UNET] |= initialized
    return _Source(unet, vae, configs, tensors, tuple(initialized))


def _check_channels(unet: UNetConfig, vae: VAEConfig, directory: Path) -> None:
    inputs, latents = unet.in_channels, vae.latent_channels
    if not inputs == unet.out_channels == latents:
        raise UserError(
            f"The U-Net in {directory} has {inputs} input and {unet.out_channels} output channels, but the latents "
            f"have {latents}: it is a model for inpainting, editing or another task. Use a text-to-image model, such "
            "as Stable Diffusion v1.5."
        )


def initial_projections(config: UNetConfig, *, dtypes: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return new key and value projections of the conditioning, by PyTorch name.

    Args:
      config: of the U-Net, with the new width.
      dtypes: the tensors that they replace, whose types they get.
      seed: of the draw.
    """
    key = jax.random.key(seed)

    def projection(index: int, row: Row) -> Tensor:
        def draw() -> np.ndarray:
            kernel = lecun_normal(jax.random.fold_in(key, index), row.torch_shape[::-1], jnp.float32)
            return np.asarray(kernel).T.astype(dtype)

        dtype = dtypes[row.torch].dtype
        return Tensor(row.torch, row.torch_shape, dtype, draw)

    return {
        row.torch: projection(index, row)
        for index, row in enumerate(unet_table(config))
        if row.path.endswith(("cross_attention/key/kernel", "cross_attention/value/kernel"))
    }
