"""Save and load a model: DIR/config.json, DIR/tokenizer.model, DIR/params, DIR/unused, DIR/visual_decoder."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emu_jax.checkpoints.model_config import CONFIG, find_config, read_config, write_config
from emu_jax.checkpoints.params import check_fits, load_params, naming_good_step, save_params
from emu_jax.errors import UserError
from emu_jax.io.files import file_errors, temporary_folder
from emu_jax.io.local_copy import local_copy
from emu_jax.io.paths import absolute_path, store_errors
from emu_jax.io.safetensors_files import write_safetensors
from emu_jax.io.tensor_files import open_tensors
from emu_jax.io.tensors import Tensor, tensor_of
from emu_jax.models.config import EmuConfig
from emu_jax.models.emu import Emu
from emu_jax.sharding.specs import shardings, unbox

TOKENIZER, PARAMS, UNUSED, VISUAL_DECODER = "tokenizer.model", "params", "unused", "visual_decoder"


@dataclasses.dataclass(frozen=True)
class ModelParts:
    """The contents of a model directory.

    Attributes:
      config: of the Emu; its dtypes are those of the parameters as loaded.
      params: the parameter tree, sharded if a mesh was given.
      tokenizer: path of the SentencePiece model; None if the directory has none.
      visual_decoder: path of the folder in diffusers' layout; None if the directory has none.
    """

    config: EmuConfig
    params: dict[str, Any]
    tokenizer: Path | None
    visual_decoder: Path | None


def save_model(
    directory: Path,
    config: EmuConfig,
    params: Mapping[str, Any],
    *,
    tokenizer: Path | None = None,
    unused: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a model directory, complete or not at all. An existing DIR/visual_decoder stays.

    Raises:
      UserError: the directory contains a model already.
    """
    with new_model(directory) as temporary:
        save_params(temporary, unbox(dict(params)))
        save_unused(temporary, [tensor_of(name, array) for name, array in (unused or {}).items()])
        finish_model(temporary, config, tokenizer=tokenizer)


@contextlib.contextmanager
def new_model(directory: Path) -> Iterator[Path]:
    """Yield a temporary folder whose contents move to `directory` when the block ends without an error.

    Raises:
      UserError: the directory contains a model already, or cannot be written.
    """
    directory = Path(os.path.abspath(directory))
    if (directory / PARAMS).exists():
        raise UserError(f"{directory} contains a model already. Name another directory, or remove that one.")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file. Name a directory.")
    with file_errors("write", directory), temporary_folder(directory) as temporary:
        yield temporary
        directory.mkdir(exist_ok=True)
        # config.json is last: without it the directory is not a model.
        for item in sorted(temporary.iterdir(), key=lambda item: item.name == CONFIG):
            target = directory / item.name
            if target.is_dir():
                shutil.rmtree(target)
            item.replace(target)


def finish_model(directory: Path, config: EmuConfig, *, tokenizer: Path | None) -> None:
    """Write DIR/config.json and copy the tokenizer to DIR/tokenizer.model."""
    if tokenizer is not None:
        if not tokenizer.is_file():
            raise UserError(f"There is no tokenizer model at {tokenizer}.")
        shutil.copyfile(tokenizer, directory / TOKENIZER)
    write_config(directory / CONFIG, config)


def save_unused(directory: Path, tensors: Iterable[Tensor]) -> None:
    """Write DIR/unused: tensors of the release that Emu does not read, for the export. Write nothing if there are none.

    Raises:
      UserError: a value is NaN or infinite.
    """
    checked = [dataclasses.replace(tensor, read=tensor.read_finite) for tensor in tensors]
    if not checked:
        return
    with temporary_folder(directory / UNUSED) as temporary:
        write_safetensors(temporary, checked)
        temporary.rename(directory / UNUSED)


def open_unused(directory: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the unused tensors of a model directory, a run, or one step of a run; empty if there are none.

    Those of a URL such as gs://BUCKET/FOLDER are copied to this machine.

    Raises:
      UserError: the object store cannot be read.
    """
    start = absolute_path(directory)
    with store_errors(start):
        for folder in (start, *list(start.parents)[:2]):  # RUN/checkpoints/STEP
            if (folder / UNUSED).is_dir():
                return open_tensors(local_copy(folder / UNUSED))
            if (folder / CONFIG).is_file():
                break
    return {}


def carry_unused(start: str | os.PathLike[str], workdir: Path) -> None:
    """Copy the unused tensors of the model that a run starts from to the run's directory, for its export."""
    unused = open_unused(start)
    if unused and not (workdir / UNUSED).exists():
        save_unused(workdir, unused.values())


def read_model(directory: Path, *, mesh: Mesh | None = None, dtype: Any = None) -> ModelParts:
    """Read a model directory, a training run (its newest checkpoint), or one step of a run.

    The config of a checkpoint is the one that was saved with it, not the config.json of the run.

    Args:
      directory: of the model, the run, or the step.
      mesh: the parameters are read into shards over it by the default rules. None: on the default device.
      dtype: the model computes in it, and its parameters are cast to it while they are read. None: as saved.

    Raises:
      UserError: there is no model, or its parameters do not fit its config.
    """
    stored = params_directory(directory)
    if stored is None:
        raise UserError(f"{directory} is not a model directory: there is no {PARAMS} folder in it.")
    with naming_good_step(stored):
        config_file = find_config(stored)
    if config_file is None:
        raise UserError(f"{directory} is not a model directory: there is no {CONFIG} in it.")
    config = read_config(Path(config_file))
    boxed = boxed_shapes(config)
    layout = None if mesh is None else shardings(boxed, mesh)
    params = load_params(stored, shardings=layout, dtype=dtype)
    check_fits(params, unbox(boxed), source=str(stored / PARAMS))
    if layout is None:
        params = jax.tree.map(jnp.asarray, params)
    folder = run_folder(directory)
    return ModelParts(
        with_dtype(config, dtype), params, existing(folder / TOKENIZER), existing(folder / VISUAL_DECODER)
    )


def with_dtype(config: EmuConfig, dtype: Any) -> EmuConfig:
    """Return `config` with `dtype` for both computation and parameters; unchanged if `dtype` is None."""
    if dtype is None:
        return config
    name = np.dtype(dtype).name
    return dataclasses.replace(config, dtype=name, param_dtype=name)


def params_directory(directory: Path) -> Path | None:
    """Return the folder that contains `params`: the directory itself, or a run's newest checkpoint. None if neither."""
    if (directory / PARAMS).is_dir():
        return directory
    steps = [p for p in directory.glob("checkpoints/*") if p.name.isdigit()]
    return max(steps, key=lambda p: int(p.name), default=None)


def run_folder(directory: Path) -> Path:
    """Return the workdir of a run, given the folder of one of its steps; other folders are returned unchanged."""
    absolute = Path(os.path.abspath(directory))
    return absolute.parents[1] if absolute.name.isdigit() and absolute.parent.name == "checkpoints" else directory


def boxed_shapes(config: EmuConfig) -> dict[str, Any]:
    """Return the shapes of all parameters with their axis names. No array is made."""
    size, length = config.vision.image_size, config.causal_former.num_image_tokens
    return jax.eval_shape(
        lambda: Emu(config, image_token_id=0).init(
            jax.random.key(0), jnp.zeros((1, length), jnp.int32), jnp.zeros((1, 1, size, size, 3), jnp.float32)
        )["params"]
    )


def existing(path: Path) -> Path | None:
    """Return `path` if it exists."""
    return path if path.exists() else None
