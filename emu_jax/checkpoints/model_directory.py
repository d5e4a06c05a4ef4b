"""A model on disk, and back: DIR/config.json, DIR/tokenizer.model, DIR/params, DIR/unused, DIR/visual_decoder."""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emu_jax.checkpoints.params import check_fits, load_params, save_params
from emu_jax.convert.diffusion_folder import is_one
from emu_jax.convert.emu_config import CONFIG, read_config, write_config
from emu_jax.convert.emu_table import lora_rank
from emu_jax.convert.files import Planned, Tensor, open_tensors, write_safetensors
from emu_jax.convert.match import open_sources, read_checked, release_to_params
from emu_jax.errors import UserError
from emu_jax.layers.linear import LoraConfig
from emu_jax.models.config import EmuConfig
from emu_jax.models.emu import Emu
from emu_jax.sharding.specs import shardings, unbox

TOKENIZER, PARAMS, UNUSED, VISUAL_DECODER = "tokenizer.model", "params", "unused", "visual_decoder"


@dataclasses.dataclass(frozen=True)
class ModelParts:
    """What a model directory holds.

    Attributes:
      config: of the Emu; its dtypes are those of the parameters as loaded.
      params: the parameter tree, sharded when a mesh was given.
      tokenizer: path of the SentencePiece model; None where the directory has none.
      visual_decoder: path of the diffusers-layout folder; None where the directory has none.
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
    """Writes a model directory; complete or not there at all, and a DIR/visual_decoder that is there stays.

    Raises:
      UserError: the directory holds a model already.
    """
    with new_model(directory) as temporary:
        save_params(temporary, unbox(dict(params)))
        finish_model(temporary, config, tokenizer=tokenizer)
        save_unused(temporary, unused or {})


@contextlib.contextmanager
def new_model(directory: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `directory` whose contents become the model when the block ends well.

    Raises:
      UserError: the directory holds a model already (unless `replace`), or cannot be made.
    """
    directory = Path(os.path.abspath(directory))
    if not replace and (directory / PARAMS).exists():
        raise UserError(f"{directory} holds a model already; name another directory, or remove that one.")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; name a directory.")
    for leftover in directory.parent.glob(f".{directory.name}.writing-*"):
        if not _alive(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = directory.parent / f".{directory.name}.writing-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{directory} cannot be made ({error.strerror}).") from None
    try:
        yield temporary
        directory.mkdir(exist_ok=True)
        # config.json goes last: without it a directory is no model
        for item in sorted(temporary.iterdir(), key=lambda item: item.name == CONFIG):
            target = directory / item.name
            if target.is_dir():
                shutil.rmtree(target)
            item.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def finish_model(directory: Path, config: EmuConfig, *, tokenizer: Path | None) -> None:
    """Puts config.json and tokenizer.model beside DIR/params."""
    if tokenizer is not None:
        if not tokenizer.is_file():
            raise UserError(f"There is no tokenizer model at {tokenizer}.")
        shutil.copyfile(tokenizer, directory / TOKENIZER)
    write_config(directory / CONFIG, config)


def save_unused(directory: Path, unused: Mapping[str, np.ndarray | Tensor]) -> None:
    """Writes the tensors that Emu carries along to DIR/unused, under the release's names; no folder for none."""
    if not unused:
        return
    folder = directory / f".{UNUSED}.writing"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    planned = [
        Planned(name, tuple(a.shape), np.dtype(a.dtype), functools.partial(_values, a)) for name, a in unused.items()
    ]
    for _ in write_safetensors(folder, planned):
        pass
    folder.rename(directory / UNUSED)


def _values(array: np.ndarray | Tensor) -> np.ndarray:
    return read_checked(array) if isinstance(array, Tensor) else np.asarray(array)


def open_unused(directory: Path) -> dict[str, Tensor]:
    """The tensors that a model directory, a run, or a step of one carries along, unread; empty where there are none."""
    for folder in (directory, *Path(os.path.abspath(directory)).parents[:2]):  # RUN/checkpoints/STEP
        if (folder / UNUSED).is_dir():
            return open_tensors(folder / UNUSED)
        if (folder / CONFIG).is_file():
            break
    return {}


def carry_unused(start: Path, workdir: Path) -> None:
    """Copies what the model that a run begins with carries along into the run's directory, for its export."""
    unused = open_unused(start)
    if unused and not (workdir / UNUSED).exists():
        save_unused(workdir, unused)


def load_model(directory: str | os.PathLike, *, mesh: Mesh | None = None, dtype: Any = None) -> ModelParts:
    """Reads a model directory of ours, a training run (its newest checkpoint), or a folder in the release's layout.

    Args:
      directory: with config.json in it.
      mesh: parameters are laid out over it by the default rules; None: on the default device.
      dtype: computes in it, and casts the parameters to it while they are read; None: as saved.

    Raises:
      UserError: there is no model, or its parameters do not fit its config.
    """
    path = Path(directory)
    if not path.is_dir():
        raise UserError(f"There is no model at {path}; name a directory with config.json in it.")
    stored = params_directory(path)
    if stored is not None:
        config = read_config(path / CONFIG)
        boxed = boxed_shapes(config)
        layout = None if mesh is None else shardings(boxed, mesh)
        params = load_params(stored, shardings=layout, dtype=dtype)
        check_fits(params, unbox(boxed), source=str(stored / PARAMS))
    else:
        config, params = _load_release(path, dtype=dtype)
        layout = None if mesh is None else shardings(boxed_shapes(config), mesh)
    if layout is None:
        params = jax.tree.map(jnp.asarray, params)
    elif stored is None:
        params = jax.device_put(params, layout)
    if dtype is not None:
        name = np.dtype(dtype).name
        config = dataclasses.replace(config, dtype=name, param_dtype=name)
    beside = path if is_one(path) else None  # as `export-torch` lays them out
    return ModelParts(config, params, _there(path / TOKENIZER), _there(path / VISUAL_DECODER) or beside)


def params_directory(directory: Path) -> Path | None:
    """The folder that holds `params`: the directory itself, or a run's newest checkpoint; None where neither is."""
    if (directory / PARAMS).is_dir():
        return directory
    steps = [p for p in directory.glob("checkpoints/*") if p.name.isdigit() and (p / PARAMS).is_dir()]
    return max(steps, key=lambda p: int(p.name), default=None)


def boxed_shapes(config: EmuConfig) -> dict[str, Any]:
    """Shapes of all parameters with their axis names; no array is made."""
    size, length = config.vision.image_size, config.causal_former.num_image_tokens
    return jax.eval_shape(
        lambda: Emu(config, image_token_id=0).init(
            jax.random.key(0), jnp.zeros((1, length), jnp.int32), jnp.zeros((1, 1, size, size, 3), jnp.float32)
        )["params"]
    )


def release_config(directory: Path, tensors: Mapping[str, Tensor]) -> EmuConfig:
    """The config of a folder in the release's layout; adapters are told by their names (alpha 16, as in Emu-I)."""
    rank = lora_rank((name, tensor.shape) for name, tensor in tensors.items())
    config = read_config(directory / CONFIG, lora=None if rank is None else LoraConfig(rank=rank))
    return config


def _load_release(directory: Path, *, dtype: Any) -> tuple[EmuConfig, dict[str, Any]]:
    if not (directory / CONFIG).is_file():
        raise UserError(f"{directory} is no model: there is no {CONFIG} in it.")
    tensors = open_sources([directory])
    config = release_config(directory, tensors)
    return config, release_to_params(tensors, config, dtype=dtype)


def _there(path: Path) -> Path | None:
    return path if path.exists() else None


def _alive(temporary: Path) -> bool:
    """Whether the process that writes `temporary` still runs."""
    pid = temporary.name.rpartition(".writing-")[2].split("-")[0]
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where the file is missing or is something else."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
