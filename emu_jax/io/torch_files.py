"""Read and write PyTorch's `.bin`, `.pt`, `.pth` and `.ckpt` files tensor by tensor. PyTorch is imported on demand."""

from __future__ import annotations

import argparse
import functools
import pathlib
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from emu_jax.errors import UserError
from emu_jax.io.tensors import Progress, Tensor, no_progress

# Keys under which training programs store the state dict, best first. The average of the weights is the last choice.
_WRAPPERS = (
    "module", "state_dict", "model_state_dict", "model", "params", "weights", "app", "checkpoint", "network", "net",
    "ema_state_dict", "model_ema", "params_ema", "ema",
)  # fmt: skip
_REOPEN_BYTES = 2**30
_HARMLESS = [argparse.Namespace, pathlib.PosixPath, pathlib.WindowsPath]  # options that programs store with weights
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_DTYPES = {
    f"torch.{name}": np.dtype(name)
    for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
} | {"torch.bfloat16": _BFLOAT16}


def open_torch(file: Path) -> tuple[list[Tensor], str]:
    """Return the tensors of one file, and the keys under which they are stored, such as "model.state_dict".

    Code in the file is never executed.

    Raises:
      UserError: PyTorch is not installed, or the file is damaged or contains anything else than dense tensors.
    """
    opened = _TorchFile(file)
    tensors = []
    for name, tensor in opened.tensors.items():
        if name.endswith("_extra_state"):  # of modules, not a parameter
            continue
        if not hasattr(tensor, "numpy"):
            raise UserError(
                f"{name} in {file} is {type(tensor).__name__}, not a tensor. Save a state dict of tensors only."
            )
        dtype = _DTYPES.get(str(tensor.dtype))
        if dtype is None or str(tensor.layout) != "torch.strided" or tensor.is_meta:
            found = "has no values" if tensor.is_meta else f"is {tensor.dtype}, {tensor.layout}"
            raise UserError(f"{name} in {file} {found}, which is not supported. Save it as dense float32.")
        tensors.append(Tensor(name, tuple(tensor.shape), dtype, functools.partial(opened.read, name), file))
    return tensors, opened.wrapper


def write_torch(file: Path, tensors: Iterable[Tensor], *, progress: Progress = no_progress) -> None:
    """Write one `.bin` file. Memory use stays small: the tensors go through a scratch file that is mapped."""
    torch = _torch()
    scratch = file.with_name(f".{file.name}.scratch")
    try:
        stored: list[tuple[Tensor, int]] = []
        with scratch.open("wb") as handle:
            for tensor in tensors:
                stored.append((tensor, handle.tell()))
                handle.write(np.ascontiguousarray(tensor.read()).view(np.uint8).data)
                progress(tensor.nbytes)
        torch.save({tensor.name: _map_tensor(torch, scratch, tensor, offset) for tensor, offset in stored}, file)
    finally:
        scratch.unlink(missing_ok=True)


def _map_tensor(torch: Any, file: Path, tensor: Tensor, offset: int) -> Any:
    bits = np.dtype(np.uint16) if tensor.dtype == _BFLOAT16 else tensor.dtype
    if tensor.nbytes == 0:  # an empty range cannot be mapped
        mapped = torch.from_numpy(np.empty(tensor.shape, bits))
    else:
        mapped = torch.from_numpy(np.memmap(file, bits, "c", offset=offset, shape=tensor.shape))
    return mapped.view(torch.bfloat16) if tensor.dtype == _BFLOAT16 else mapped


class _TorchFile:
    """A mapped state dict. It is mapped again after every GiB, because read pages count as memory until unmapped."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.tensors, self.wrapper = _load(file)
        self._read_bytes = 0

    def read(self, name: str) -> np.ndarray:
        tensor = self.tensors[name].contiguous()
        if str(tensor.dtype) == "torch.bfloat16":
            array = tensor.view(_torch().uint16).numpy().view(_BFLOAT16).copy()
        else:
            array = tensor.numpy().copy()
        del tensor
        self._read_bytes += array.nbytes
        if self._read_bytes > _REOPEN_BYTES:
            self.tensors, self._read_bytes = {}, 0
            self.tensors, _ = _load(self.file)
        return array


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            "Reading and writing .bin, .pt and .ckpt files requires PyTorch: pip install torch, or use safetensors."
        ) from None
    return torch


def _load(file: Path) -> tuple[Mapping[str, Any], str]:
    """Return the state dict in a file and the keys under which it is stored."""
    torch = _torch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about unusual pickles; the errors below say more
        loaded = _unpickle(torch, file)
    keys: list[str] = []
    while (key := next((key for key in _WRAPPERS if _has_tensors(loaded, key)), None)) is not None:
        loaded = loaded[key]
        keys.append(key)
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(f"{file} contains {type(loaded).__name__}, not a state dict of named tensors.")
    return loaded, ".".join(keys)


def _has_tensors(loaded: Any, key: str) -> bool:
    """Return True if `loaded[key]` is a state dict, or a wrapper of one."""
    inner = loaded.get(key) if isinstance(loaded, Mapping) else None
    if not isinstance(inner, Mapping):
        return False
    return any(hasattr(value, "numpy") for value in inner.values()) or any(_has_tensors(inner, k) for k in _WRAPPERS)


def _unpickle(torch: Any, file: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            try:
                return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(file, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or _is_pickle(file):
            raise UserError(
                f"{file} was not opened: it is a pickle with code in it, not only tensors. Save its "
                f"state dict only, with torch.save."
            ) from None
        raise UserError(f"{file} is not a PyTorch checkpoint, or it is damaged.") from None
    except Exception:  # torch raises a different exception for each way in which a file can be damaged
        raise UserError(f"{file} is not a PyTorch checkpoint, or it is truncated. Copy or download it again.") from None


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as handle:
        return handle.read(1) == b"\x80"
