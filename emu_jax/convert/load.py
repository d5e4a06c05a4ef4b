"""Load a model from a directory of ours or from a folder in the release's layout."""

import dataclasses
import enum
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from emu_jax.checkpoints.model_config import CONFIG
from emu_jax.checkpoints.model_directory import (
    VISUAL_DECODER,
    ModelParts,
    boxed_shapes,
    existing,
    params_directory,
    read_model,
    with_dtype,
)
from emu_jax.convert.adapt import crop_vocabulary
from emu_jax.convert.describe import declared_vocabulary, vocabulary_rows, with_adapters
from emu_jax.convert.diffusion_folder import is_diffusers_folder
from emu_jax.convert.match import match
from emu_jax.convert.release_files import find_emu_config, read_emu_config
from emu_jax.convert.sources import emu_folder, find_tokenizer, open_sources
from emu_jax.errors import UserError
from emu_jax.io.paths import local_path
from emu_jax.layers.int8 import kernel_dims, quantize_kernels
from emu_jax.sharding.specs import shardings


class Quantization(enum.Enum):
    """Storage of the kernels of a loaded model."""

    INT8 = "int8"  # eight bits, with one scale per output channel

    @classmethod
    def named(cls, name: str) -> "Quantization":
        """Return the quantization of that name; raise UserError for other names."""
        try:
            return cls(name)
        except ValueError:
            known = ", ".join(repr(one.value) for one in cls)
            raise UserError(f"quantization must be {known}, not {name!r}.") from None


def load_model(
    directory: str | os.PathLike,
    *,
    mesh: Mesh | None = None,
    dtype: Any = None,
    quantization: Quantization | None = None,
) -> ModelParts:
    """Read a model directory, a training run (its newest checkpoint), or a folder in the release's layout.

    Args:
      directory: with config.json in it.
      mesh: the parameters are sharded over it by the default rules. None: on the default device.
      dtype: the model computes in it, and its parameters are cast to it while they are read. None: as saved.
      quantization: of the kernels. None: they are stored in the dtype of the computation.

    Raises:
      UserError: there is no model, or its parameters do not fit its config.
    """
    path = local_path(directory)
    if not path.is_dir():
        raise UserError(f"There is no model at {path}. Name a directory with {CONFIG} in it.")
    if params_directory(path) is not None:
        parts = read_model(path, mesh=mesh, dtype=dtype)
    else:
        parts = _read_release(path, mesh=mesh, dtype=dtype)
    if parts.visual_decoder is None and is_diffusers_folder(path):  # as `export-torch` writes them
        parts = dataclasses.replace(parts, visual_decoder=path)
    if quantization is Quantization.INT8:
        dims = kernel_dims(lambda: boxed_shapes(parts.config))
        parts = dataclasses.replace(parts, params=quantize_kernels(parts.params, dims))
    return parts


def _read_release(path: Path, *, mesh: Mesh | None, dtype: Any) -> ModelParts:
    inner = emu_folder(path)
    file = find_emu_config(inner) or existing(inner / CONFIG)
    if file is None:
        raise UserError(f"{path} is not a model directory: there is no {CONFIG} in it.")
    tensors, _ = crop_vocabulary(open_sources([path]).tensors, pieces=None, declared=declared_vocabulary([path]))
    config = with_adapters(read_emu_config(file, vocab_size=vocabulary_rows(tensors)), tensors)
    params = match(tensors, config).read_params(dtype)
    if mesh is None:
        params = jax.tree.map(jnp.asarray, params)
    else:
        params = jax.device_put(params, shardings(boxed_shapes(config), mesh))
    tokenizer, decoder = find_tokenizer([path]), existing(path / VISUAL_DECODER)
    return ModelParts(with_dtype(config, dtype), params, tokenizer, decoder)
