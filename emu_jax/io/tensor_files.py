"""Open a weight checkpoint in PyTorch's layouts: one file, a folder, or shards with an index."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from emu_jax.errors import UserError
from emu_jax.io.checkpoint_folder import TORCH_SUFFIXES, weight_files
from emu_jax.io.safetensors_files import open_safetensors
from emu_jax.io.tensors import Tensor
from emu_jax.io.torch_files import open_torch


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint by name, and one line for each choice that was made to find them."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def open_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint file or folder, by name, as `open_checkpoint` finds them."""
    return open_checkpoint(path).tensors


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint file or folder. Only headers are read.

    Raises:
      UserError: there is no checkpoint, it is incomplete or damaged, or a pickle contains code.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist. Name a checkpoint file, or the folder that contains it.")
    files, ignored = weight_files(path) if path.is_dir() else ([path], [])
    notes = [f"ignored in {path}: {', '.join(ignored)}"] if ignored else []
    tensors: dict[str, Tensor] = {}
    for file in files:
        opened, wrapper = _open_file(file)
        if wrapper:
            notes.append(f"{file.name}: the tensors under {wrapper} are read")
        for tensor in opened:
            if tensor.name in tensors:
                raise UserError(f"{tensor.name} is in both {tensors[tensor.name].file} and {file}. Keep one of them.")
            tensors[tensor.name] = tensor
    return Checkpoint(tensors, tuple(notes))


def _open_file(file: Path) -> tuple[list[Tensor], str]:
    """Return the tensors of one file, and the keys under which it has them."""
    if file.suffix == ".safetensors":
        return open_safetensors(file), ""
    if file.suffix in TORCH_SUFFIXES:
        return open_torch(file)
    raise UserError(f"{file} is not a checkpoint: its name must end in .safetensors, .bin, .pt, .pth or .ckpt.")
