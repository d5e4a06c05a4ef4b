"""Read and write safetensors files one tensor at a time.

Reading is the safetensors library's. Writing is done here, because the library needs all tensors of a file in memory.
The format is eight bytes with the length of the header, a JSON header, and the raw tensors.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from emu_jax.errors import UserError
from emu_jax.io.files import file_errors, write_json
from emu_jax.io.tensors import Progress, Tensor, no_progress

SHARD_BYTES = 5 * 10**9
_DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def open_safetensors(file: Path) -> list[Tensor]:
    """Return the tensors of one file; only its header is read.

    Raises:
      UserError: the file is not safetensors, is incomplete, or has a tensor of an unsupported type.
    """
    try:
        with file_errors("read", file):
            opened = safe_open(file, framework="numpy", backend="pread")  # without pread, mapped pages count as memory
    except SafetensorError as error:
        raise UserError(f"{file} is not a complete safetensors file ({error}). Copy or download it again.") from error
    tensors = []
    for name in opened.keys():  # noqa: SIM118 (not a mapping)
        header = opened.get_slice(name)
        dtype = _DTYPES.get(header.get_dtype())
        if dtype is None:
            raise UserError(
                f"{name} in {file} has the type {header.get_dtype()}, which is not supported. Save it as F32 or BF16."
            )
        read = functools.partial(opened.get_tensor, name)
        tensors.append(Tensor(name, tuple(header.get_shape()), dtype, read, file))
    return tensors


def write_safetensors(
    folder: Path,
    tensors: Iterable[Tensor],
    *,
    stem: str = "model",
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = no_progress,
) -> None:
    """Write `STEM.safetensors`, or `STEM-00001-of-0000N.safetensors` and an index if there is more than one shard.

    Each tensor is read when it is written.

    Args:
      folder: exists already.
      tensors: in the order of the files.
      stem: start of the file names.
      shard_bytes: largest size of a file. A single larger tensor gets its own file.
      progress: called after each tensor.
    """
    shards = _split(tensors, shard_bytes)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as handle:
            handle.write(header_bytes(shard))
            for tensor in shard:
                _write_tensor(handle, tensor)
                weight_map[tensor.name] = name
                progress(tensor.nbytes)
    if len(shards) > 1:
        total = sum(tensor.nbytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / f"{stem}.safetensors.index.json", index, indent=2)


def header_bytes(tensors: Sequence[Tensor]) -> bytes:
    """Return the length and the JSON header of a file with these tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _split(tensors: Iterable[Tensor], shard_bytes: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _write_tensor(handle: BinaryIO, tensor: Tensor) -> None:
    array = np.ascontiguousarray(tensor.read())
    assert array.shape == (tensor.shape or (1,)), (tensor.name, array.shape, tensor.shape)
    assert array.dtype == tensor.dtype, (tensor.name, array.dtype, tensor.dtype)
    handle.write(array.view(np.uint8).data)
