"""Open a weight checkpoint in PyTorch's layouts: one file, a folder, or shards with an index."""

from __future__ import annotations

import os
from pathlib import Path

from emu_jax.errors import UserError
from emu_jax.io.files import read_json
from emu_jax.io.safetensors_files import open_safetensors
from emu_jax.io.tensors import Tensor
from emu_jax.io.torch_files import TORCH_SUFFIXES, open_torch


def open_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint file or folder, by name. Only headers are read.

    In a folder, safetensors are preferred over `.bin`, and an index over single files.

    Raises:
      UserError: there is no checkpoint, it is incomplete or damaged, or a pickle contains code.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist. Name a checkpoint file, or the folder that contains it.")
    tensors: dict[str, Tensor] = {}
    for file in _files(path) if path.is_dir() else [path]:
        for tensor in _open_file(file):
            if tensor.name in tensors:
                raise UserError(f"{tensor.name} is in both {tensors[tensor.name].file} and {file}. Keep one of them.")
            tensors[tensor.name] = tensor
    return tensors


def _files(folder: Path) -> list[Path]:
    for suffixes in ((".safetensors",), TORCH_SUFFIXES):
        indices = [p for p in sorted(folder.glob("*.index.json")) if p.name.endswith(f"{suffixes[0]}.index.json")]
        if len(indices) > 1:
            raise UserError(f"{folder} has {len(indices)} indices ({indices[0].name}, ...). Name one checkpoint.")
        if indices:
            return _indexed_files(indices[0])
        found = [p for p in sorted(folder.iterdir()) if p.suffix in suffixes and p.name != "training_args.bin"]
        if found:
            return found
    raise UserError(f"{folder} has no checkpoint: there is no .safetensors, .bin, .pt or .pth file in it.")


def _indexed_files(index: Path) -> list[Path]:
    values = read_json(index)
    try:
        names = sorted(set(map(os.fspath, values["weight_map"].values())))
    except (KeyError, AttributeError, TypeError):
        raise UserError(f"{index} is not an index of checkpoint shards (it has no weight_map).") from None
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise UserError(f"{index} lists {len(absent)} files that are not in its folder: {', '.join(absent[:3])}.")
    return [index.parent / name for name in names]


def _open_file(file: Path) -> list[Tensor]:
    if file.suffix == ".safetensors":
        return open_safetensors(file)
    if file.suffix in TORCH_SUFFIXES:
        return open_torch(file)
    raise UserError(f"{file} is not a checkpoint: its name must end in .safetensors, .bin, .pt or .pth.")
