"""PyTorch's checkpoint files, read tensor by tensor: safetensors and `.bin`, single, sharded, or wrapped.

safetensors is read and written here directly (eight bytes of length, a JSON header, the raw tensors): the format is
smaller than the memory its libraries map, and a reader that seeks holds one tensor at a time.
"""

import dataclasses
import functools
import json
import math
import operator
import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from emu_jax.errors import UserError

_DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
_TORCH_SUFFIXES = (".bin", ".pt", ".pth")
_WRAPPERS = ("module", "state_dict", "model")
_REOPEN_AFTER = 2**30  # bytes


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that still lies in its file: `read()` gives a fresh array of `shape` and `dtype`.

    `offset` is where its bytes begin, for files that keep them plain.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    read: Callable[[], np.ndarray]
    offset: int = 0


def open_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, or of a folder that holds one, by name. Only headers are read.

    In a folder safetensors go before `.bin`, and an index before single files.

    Raises:
      UserError: there is no checkpoint, or it is truncated, or not what its name says, or holds Python code.
    """
    if not path.exists():
        raise UserError(f"There is nothing at {path}; name a checkpoint file or the folder that holds it.")
    tensors: dict[str, Tensor] = {}
    for file in _files(path) if path.is_dir() else [path]:
        for tensor in _open_file(file):
            if tensor.name in tensors:
                raise UserError(
                    f"{tensor.name} is both in {tensors[tensor.name].file} and in {file}; keep one of them."
                )
            tensors[tensor.name] = tensor
    return tensors


def _files(folder: Path) -> list[Path]:
    for suffixes in ((".safetensors",), _TORCH_SUFFIXES):
        indices = [p for p in sorted(folder.glob("*.index.json")) if p.name.endswith(f"{suffixes[0]}.index.json")]
        if len(indices) > 1:
            raise UserError(f"{folder} holds {len(indices)} indices ({indices[0].name}, ...); name one checkpoint.")
        if indices:
            return _indexed(indices[0])
        found = [p for p in sorted(folder.iterdir()) if p.suffix in suffixes and p.name != "training_args.bin"]
        if found:
            return found
    raise UserError(f"{folder} holds no checkpoint: there is no .safetensors, .bin, .pt or .pth file in it.")


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(map(os.fspath, json.loads(index.read_text())["weight_map"].values())))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{index} is not an index of checkpoint shards (no weight_map in it).") from None
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise UserError(f"{index.name} names {len(absent)} files that are not beside it: {', '.join(absent[:3])}.")
    return [index.parent / name for name in names]


def _open_file(file: Path) -> list[Tensor]:
    if file.suffix == ".safetensors":
        return _open_safetensors(file)
    if file.suffix in _TORCH_SUFFIXES:
        return _open_torch(file)
    raise UserError(f"{file} is not a checkpoint: its name ends neither in .safetensors nor in .bin, .pt or .pth.")


def _open_safetensors(file: Path) -> list[Tensor]:
    size = file.stat().st_size
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError
            entries = [_Entry.read(name, e) for name, e in json.loads(handle.read(length)).items() if name != _METADATA]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is not a safetensors file (no valid header), or its beginning is damaged.") from None
    data = 8 + length
    end = data + max((entry.stop for entry in entries), default=0)
    if size < end:
        raise UserError(f"{file} is truncated: {size} bytes of {end}; copy or download it again.")

    tensors = []
    for name, kind, shape, start, stop in entries:
        if kind not in _DTYPES:
            raise UserError(f"{name} in {file} is of type {kind}, which cannot be read; save it as F32 or BF16.")
        dtype = _DTYPES[kind]
        if start < 0 or min(shape, default=0) < 0 or stop - start != math.prod(shape) * dtype.itemsize:
            raise UserError(f"{file} is damaged: {name} is said to be {dtype} {list(shape)} in {stop - start} bytes.")
        offset = data + start
        read = functools.partial(_read_plain, file, offset, dtype, shape)
        tensors.append(Tensor(name, shape, dtype, file, read, offset))
    return tensors


class _Entry(NamedTuple):
    """A tensor as a safetensors header tells it: its bytes are those from `start` to `stop` after the header."""

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @classmethod
    def read(cls, name: str, values: dict[str, Any]) -> "_Entry":
        """Raises ValueError, KeyError or TypeError where it is none."""
        start, stop = map(operator.index, values["data_offsets"])
        return cls(name, str(values["dtype"]), tuple(map(operator.index, values["shape"])), start, stop)


def _read_plain(file: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.fromfile(file, dtype, count=math.prod(shape), offset=offset).reshape(shape)


def _open_torch(file: Path) -> list[Tensor]:
    mapping = _TorchFile(file)
    tensors = []
    for name, tensor in mapping.tensors.items():
        if not hasattr(tensor, "numpy"):
            raise UserError(f"{name} in {file} is {type(tensor).__name__}, not a tensor; save the state dict alone.")
        dtype = _NAMES_OF_TORCH.get(str(tensor.dtype))
        if dtype is None or str(tensor.layout) != "torch.strided" or tensor.is_meta:
            kind = "without values" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
            raise UserError(f"{name} in {file} is of a kind ({kind}) that cannot be read; save it as plain float32.")
        tensors.append(Tensor(name, tuple(tensor.shape), dtype, file, functools.partial(mapping.read, name)))
    return tensors


_NAMES_OF_TORCH = {
    "torch.float64": _DTYPES["F64"], "torch.float32": _DTYPES["F32"], "torch.float16": _DTYPES["F16"],
    "torch.bfloat16": _DTYPES["BF16"], "torch.int64": _DTYPES["I64"], "torch.int32": _DTYPES["I32"],
    "torch.int16": _DTYPES["I16"], "torch.int8": _DTYPES["I8"], "torch.uint8": _DTYPES["U8"],
    "torch.bool": _DTYPES["BOOL"],
}  # fmt: skip


class _TorchFile:
    """A state dict mapped from disk; mapped anew now and then, as its pages count as memory until the mapping goes."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.tensors = _load_torch(file)
        self._read_bytes = 0

    def read(self, name: str) -> np.ndarray:
        tensor = self.tensors[name].contiguous()
        if str(tensor.dtype) == "torch.bfloat16":
            array = tensor.view(_torch().uint16).numpy().view(ml_dtypes.bfloat16).copy()
        else:
            array = tensor.numpy().copy()
        del tensor
        self._read_bytes += array.nbytes
        if self._read_bytes > _REOPEN_AFTER:
            self.tensors, self._read_bytes = {}, 0
            self.tensors = _load_torch(self.file)
        return array


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            "Reading or writing .bin, .pt and .pth files wants PyTorch: pip install torch, or use safetensors."
        ) from None
    return torch


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as handle:
        return handle.read(1) == b"\x80"


def _load_torch(file: Path) -> Mapping[str, Any]:
    torch = _torch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on strange pickles, of which the errors below tell
        loaded = _loaded(torch, file)
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(f"{file} holds {type(loaded).__name__}, not a state dict of named tensors.")
    return loaded


def _loaded(torch: Any, file: Path) -> Any:
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(file, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or _is_pickle(file):
            raise UserError(f"{file} holds more than tensors (a pickle with code in it) and was not opened.") from None
        raise UserError(f"{file} is not a PyTorch checkpoint, or it is damaged.") from None
    except Exception:
        raise UserError(f"{file} is not a PyTorch checkpoint, or it is truncated; copy or download it again.") from None


@dataclasses.dataclass(frozen=True)
class Planned:
    """A tensor to be written: `make()` is called once, when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    folder: Path, tensors: Iterable[Planned], *, shard_bytes: int = 5 * 10**9, stem: str = "model"
) -> Iterator[Planned]:
    """Writes `STEM.safetensors`, or `STEM-00001-of-0000N.safetensors` with an index where one shard is not enough.

    A generator: it yields each tensor once it is on disk, so that the caller can show progress.
    """
    shards: list[list[Planned]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as handle:
            handle.write(_safetensors_header(shard))
            for tensor in shard:
                _write_tensor(handle, tensor)
                weight_map[tensor.name] = name
                yield tensor
    if len(shards) > 1:
        total = sum(tensor.nbytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _safetensors_header(shard: list[Planned]) -> bytes:
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    offset = 0
    for tensor in shard:
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(handle: BinaryIO, tensor: Planned) -> None:
    array = np.ascontiguousarray(tensor.make())
    assert array.shape == tensor.shape, (tensor.name, array.shape, tensor.shape)
    assert array.dtype == tensor.dtype, (tensor.name, array.dtype, tensor.dtype)
    handle.write(array.view(np.uint8).data if array.ndim else array.tobytes())


def write_torch(folder: Path, safetensors: Iterable[Path], *, name: str = "pytorch_model.bin") -> None:
    """Writes one `.bin` of all tensors of some safetensors files; they are mapped, not read, so memory stays small."""
    torch = _torch()
    state = {}
    for file in safetensors:
        for tensor in _open_safetensors(file):
            bits = np.uint16 if tensor.dtype == _DTYPES["BF16"] else tensor.dtype
            mapped = torch.from_numpy(np.memmap(file, bits, "c", offset=tensor.offset, shape=tensor.shape))
            state[tensor.name] = mapped.view(torch.bfloat16) if bits is np.uint16 else mapped
    torch.save(state, folder / name)
