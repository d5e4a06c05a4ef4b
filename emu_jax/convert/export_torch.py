"""A model directory to PyTorch's files: the release's names and shapes, or a LLaMA folder with the rest beside it.

A visual decoder goes out as `unet/`, `vae/`, `scheduler/` beside the Emu, where the release's pipeline looks for it.

One of our parameters is in memory at a time; its layers are written one after the other.
"""

import contextlib
import dataclasses
import enum
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from emu_jax.checkpoints.model_directory import (
    PARAMS,
    TOKENIZER,
    VISUAL_DECODER,
    open_unused,
    params_directory,
    read_json,
)
from emu_jax.convert.diffusion_folder import copy_decoder, is_one
from emu_jax.convert.emu_config import CONFIG, find_config, read_config, to_llama_config, to_release_config
from emu_jax.convert.emu_table import DECODER, Row, emu_rows, peft_name, to_torch, unused_shapes
from emu_jax.convert.files import Planned, Tensor, write_safetensors, write_torch
from emu_jax.convert.huggingface_tokenizer import tokenizer_files
from emu_jax.convert.streaming import StoredParams
from emu_jax.errors import UserError
from emu_jax.models.config import EmuConfig

SHARD_BYTES = 5 * 10**9
DECODER_STAGES = ("vae", "visual_decoder")  # their checkpoints hold no Emu; the result is in WORKDIR/visual_decoder
_HEAD = DECODER + "stu_regress_head."

Progress = Callable[[int], None]


class Layout(enum.Enum):
    """Whose files are written."""

    RELEASE = "release"
    HUGGINGFACE = "huggingface"


@dataclasses.dataclass(frozen=True)
class PreparedExport:
    """An export whose shapes have been checked; `write` does it.

    Attributes:
      config: of the Emu that is exported.
      tensors: all that will be written, by the release's names, in order.
      zeros: tensors that the model never had and that are written as zeros.
      tokenizer: to be copied; None where the model has none.
      visual_decoder: folder to be copied, in its own dtype; None where the model has none.
    """

    config: EmuConfig
    tensors: tuple[Planned, ...]
    zeros: tuple[str, ...]
    tokenizer: Path | None
    visual_decoder: Path | None = None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def write(
        self,
        destination: Path,
        *,
        layout: Layout = Layout.RELEASE,
        binary: bool = False,
        shard_bytes: int = SHARD_BYTES,
        progress: Progress | None = None,
    ) -> tuple[str, ...]:
        """Writes the folder; complete or not there at all.

        Args:
          destination: must not exist, or be empty.
          layout: whose files.
          binary: `pytorch_model.bin` (one file, wants torch) instead of safetensors.
          shard_bytes: no safetensors file grows past this.
          progress: called with the number of bytes just written.

        Returns:
          The files, relative to the destination.

        Raises:
          UserError: the destination is in use or cannot be written, or the layout cannot hold this model.
        """
        kind = {"binary": binary, "shard_bytes": shard_bytes, "progress": progress or (lambda _bytes: None)}
        with _new_folder(destination) as temporary:
            if layout is Layout.RELEASE:
                self._write_release(temporary, **kind)
            else:
                self._write_huggingface(temporary, **kind)
            if self.tokenizer is not None:
                shutil.copyfile(self.tokenizer, temporary / TOKENIZER)
            if self.visual_decoder is not None:
                copy_decoder(self.visual_decoder, temporary)
            return _files(temporary)

    def _write_release(self, folder: Path, **kind: Any) -> None:
        rename = peft_name if self.config.lora is not None else (lambda name: name)
        _write(folder, [dataclasses.replace(t, name=rename(t.name)) for t in self.tensors], **kind)
        _write_json(folder / CONFIG, to_release_config(self.config))

    def _write_huggingface(self, folder: Path, **kind: Any) -> None:
        if self.config.lora is not None:
            raise UserError("A LLaMA folder has no place for adapters; give --merge-lora, or --format release.")
        llama = [t for t in self.tensors if t.name.startswith(DECODER) and not t.name.startswith(_HEAD)]
        rest = [t for t in self.tensors if t not in llama]
        _write(folder, [dataclasses.replace(t, name=t.name.removeprefix(DECODER)) for t in llama], **kind)
        decoder = self.config.decoder
        dtype = np.dtype(llama[0].dtype).name
        _write_json(folder / CONFIG, to_llama_config(decoder, vocab_size=decoder.vocab_size, dtype=dtype))
        if self.tokenizer is not None:
            sizes = {"vocab_size": decoder.vocab_size, "max_length": decoder.max_length}
            for name, values in tokenizer_files(self.tokenizer, **sizes).items():
                _write_json(folder / name, values)
        beside = folder / "emu"
        beside.mkdir()
        _write(beside, rest, **kind)
        _write_json(beside / CONFIG, to_release_config(self.config))


def prepare_export(checkpoint: Path, *, dtype: Any = None, merge_lora: bool = False) -> PreparedExport:
    """Opens a model directory, a run, or one of its steps, and checks its parameters against the table.

    Args:
      checkpoint: the directory.
      dtype: floating-point tensors are written in it; None: as they are.
      merge_lora: add the adapters to the weights they adapt, so that none are left.

    Raises:
      UserError: there is no model, or its parameters are not those of its config.
    """
    stored_in = params_directory(checkpoint) if checkpoint.is_dir() else None
    if stored_in is None:
        raise UserError(f"{checkpoint} is no model directory: there are no parameters in it.")
    found = find_config(checkpoint)
    if found is None:
        raise UserError(f"{checkpoint} is no model directory: there is no {CONFIG} in it.")
    config = read_config(found)
    stored = StoredParams(epath.Path(os.path.abspath(stored_in)) / PARAMS)
    rows = emu_rows(config)
    wanted = {row.path: row.stacked for row in rows}
    have = {name: tuple(struct.shape) for name, struct in stored.shapes.items()}
    if wanted != have:
        missing = sorted(set(wanted) - set(have))
        left = sorted(set(have) - set(wanted))
        other = sorted(name for name in set(have) & set(wanted) if have[name] != wanted[name])
        raise UserError(
            f"The parameters in {stored_in} are not those of its config: {len(missing)} missing {missing[:3]}, "
            f"{len(left)} left over {left[:3]}, {len(other)} of another shape {other[:3]}."
        )
    target = None if dtype is None else np.dtype(dtype)
    unused = open_unused(checkpoint)
    scale = config.lora.scale if merge_lora and config.lora is not None else None
    if merge_lora:
        if config.lora is None:
            raise UserError(f"{checkpoint} has no adapters to merge; leave out --merge-lora.")
        rows = tuple(row for row in rows if "/lora_" not in row.path)
        config = dataclasses.replace(config, lora=None)
    tensors = [tensor for row in rows for tensor in _planned(row, stored, scale, target)]
    zeros = tuple(name for name in unused_shapes(config) if name not in unused)
    common = tensors[0].dtype
    for name, shape in unused_shapes(config).items():
        tensors.append(_planned_unused(name, shape, unused.get(name), target, common))
    tokenizer = checkpoint / TOKENIZER
    return PreparedExport(
        config,
        tuple(tensors),
        zeros,
        tokenizer=tokenizer if tokenizer.is_file() else None,
        visual_decoder=_decoder_of(checkpoint),
    )


def decoder_alone(checkpoint: Path) -> Path | None:
    """The diffusers folder of a checkpoint without an Emu: itself, or what the decoder's stages left."""
    if is_one(checkpoint):
        return checkpoint
    of_stage = read_json(checkpoint / CONFIG).get("stage") in DECODER_STAGES
    return _decoder_of(checkpoint) if of_stage or params_directory(checkpoint) is None else None


def export_decoder(source: Path, destination: Path) -> tuple[str, ...]:
    """Writes a diffusers folder alone; complete or not there at all. The files, relative to the destination."""
    with _new_folder(destination) as temporary:
        copy_decoder(source, temporary)
        return _files(temporary)


def _decoder_of(checkpoint: Path) -> Path | None:
    folder = checkpoint / VISUAL_DECODER
    return folder if is_one(folder) else None


def _files(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))


class _Stack:
    """One stored parameter, held while its layers are written."""

    def __init__(self, read: Callable[[], np.ndarray], count: int) -> None:
        self._read, self._left = read, count
        self._array: np.ndarray | None = None

    def take(self) -> np.ndarray:
        array = self._read() if self._array is None else self._array
        self._left -= 1
        self._array = array if self._left else None
        return array


def _planned(row: Row, stored: StoredParams, scale: float | None, target: np.dtype | None) -> Iterator[Planned]:
    stack = _Stack(lambda: _read(row, stored, scale), row.layers or 1)
    dtype = np.dtype(stored.shapes[row.path].dtype) if target is None else target
    for i, name in enumerate(row.names):

        def make(i: int = i) -> np.ndarray:
            array = stack.take()
            return np.ascontiguousarray(to_torch(row, array if row.layers is None else array[i])).astype(dtype)

        yield Planned(name, row.shape, dtype, make)


def _read(row: Row, stored: StoredParams, scale: float | None) -> np.ndarray:
    """The parameter; with a `scale`, plus what its adapter adds, where it has one."""
    array = stored.read(row.path)
    path = row.path.removesuffix("kernel")
    if scale is None or path + "lora_a" not in stored.shapes:
        return array
    down, up = stored.read(path + "lora_a"), stored.read(path + "lora_b")
    for i in range(len(array)):
        a = down[i].reshape(-1, down.shape[-1]).astype(np.float32)
        b = up[i].reshape(up.shape[1], -1).astype(np.float32)
        array[i] = (array[i].astype(np.float32) + scale * (a @ b).reshape(array[i].shape)).astype(array.dtype)
    return array


def _planned_unused(
    name: str, shape: tuple[int, ...], tensor: Tensor | None, target: np.dtype | None, common: np.dtype
) -> Planned:
    if tensor is None:
        dtype = target or common
        return Planned(name, shape, dtype, lambda: np.zeros(shape, dtype))
    dtype = target or tensor.dtype
    return Planned(name, tensor.shape, dtype, lambda: tensor.read().astype(dtype))


def _write(folder: Path, tensors: list[Planned], *, binary: bool, shard_bytes: int, progress: Progress) -> None:
    if not binary:
        for tensor in write_safetensors(folder, tensors, shard_bytes=shard_bytes):
            progress(tensor.nbytes)
        return
    stage = folder / "stage"
    stage.mkdir()
    for tensor in write_safetensors(stage, tensors, shard_bytes=shard_bytes):
        progress(tensor.nbytes)
    write_torch(folder, sorted(stage.glob("*.safetensors")))
    shutil.rmtree(stage)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


@contextlib.contextmanager
def _new_folder(destination: Path) -> Iterator[Path]:
    destination = Path(os.path.abspath(destination))
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} is there already and not an empty folder; name another.")
    temporary = destination.parent / f".{destination.name}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if destination.exists():
            destination.rmdir()
        temporary.rename(destination)
    except OSError as error:
        raise UserError(f"{destination} could not be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
