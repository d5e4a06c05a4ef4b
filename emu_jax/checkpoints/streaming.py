"""Write and read DIR/params piece by piece, for models that are larger than the memory.

The result is a normal Orbax checkpoint. Each array is made when it is written.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from flax import traverse_util
from orbax.checkpoint import type_handlers

from emu_jax.checkpoints.fingerprint import Fingerprints, sum_on_host
from emu_jax.checkpoints.params import naming_good_step, read_arrays, saved_shapes
from emu_jax.checkpoints.step import PARAMS, read_record, write_record
from emu_jax.io.tensors import Progress, no_progress

_CHUNK_BYTES = 32 * 2**20  # chunk size of the arrays on disk: a host reads one chunk for a shard of one layer
_SMALL_BYTES = 2**20  # arrays up to this are written together
_WRITE_BYTES = 128 * 2**20  # layers that are written together; each write waits for the disk


@dataclasses.dataclass(frozen=True)
class LazyParameter:
    """An array that is made layer by layer.

    Attributes:
      shape: with all layers.
      dtype: of the array.
      stacked: the leading axis is the layers.
      layer: returns index i of the leading axis, or the complete array if it is not stacked.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool
    layer: Callable[[int], np.ndarray]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def count(self) -> int:
        """Number of layers."""
        return self.shape[0] if self.stacked else 1

    def materialize(self) -> np.ndarray:
        """Return the complete array."""
        if not self.stacked:
            return np.ascontiguousarray(self.layer(0), self.dtype)
        return self.layers(range(self.count))

    def layers(self, group: range) -> np.ndarray:
        """Return some layers of a stacked array."""
        block = np.empty((len(group), *self.shape[1:]), self.dtype)
        for row, i in zip(block, group, strict=True):
            row[...] = self.layer(i)
        return block


def write_params(
    path: epath.Path, parameters: Mapping[str, LazyParameter], *, progress: Progress = no_progress
) -> None:
    """Write an Orbax checkpoint at `path` that `load_params` reads, and its checksums next to it.

    Args:
      path: of the checkpoint; it must not exist.
      parameters: by path, joined by "/".
      progress: called with the number of bytes just written.

    Raises:
      Exception: as raised while making or writing an array. Nothing is left at `path` then.
    """
    handler = _LazyHandler(progress)
    registry = type_handlers.create_type_handler_registry(
        (LazyParameter, handler), (jax.Array, type_handlers.ArrayHandler())
    )
    sums: dict[str, dict[int, int]] = {name: {} for name in parameters}
    summed = {name: _summed(parameter, sums[name]) for name, parameter in parameters.items()}
    tree = traverse_util.unflatten_dict(summed, sep="/")
    save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,)), tree)
    with ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    ) as checkpointer:
        try:
            checkpointer.save(path, args=ocp.args.PyTreeSave(tree, save_args=save_args))
        except Exception as error:  # Orbax reports the missing arrays, not the cause
            raise handler.failure or error from None
    arrays: Fingerprints = {
        "".join(f"['{key}']" for key in (PARAMS, *name.split("/"))): (
            str(parameter.dtype), sum(sums[name].values()) % 2**32, list(parameter.shape)
        )
        for name, parameter in parameters.items()
    }  # fmt: skip
    write_record(path.parent, arrays)


def _summed(parameter: LazyParameter, sums: dict[int, int]) -> LazyParameter:
    """Return the same parameter; the fingerprint of each layer is stored in `sums` when it is made."""

    def layer(index: int) -> np.ndarray:
        array = np.asarray(parameter.layer(index), parameter.dtype)
        sums[index] = sum_on_host(array)
        return array

    return dataclasses.replace(parameter, layer=layer)


class _LazyHandler(type_handlers.NumpyHandler):
    """Type handler that makes and writes one array at a time, a few layers per write.

    This overrides a private method. The public `TypeHandler.serialize` would need the complete array, which can be
    larger than the memory, or Orbax's private functions that build the specification of the stored array.
    """

    def __init__(self, progress: Progress) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._progress = progress
        self._lock: asyncio.Lock | None = None
        self.failure: Exception | None = None

    async def _open_and_write(self, value: Any, tspec: dict[str, Any], ts_context: ts.Context) -> None:
        # After an exception here, Orbax would close the event loop of the other writes while they run.
        try:
            if self.failure is None:
                await self._write(value, tspec, ts_context)
        except Exception as error:
            self.failure = self.failure or error

    async def _write(self, value: LazyParameter, tspec: dict[str, Any], ts_context: ts.Context) -> None:
        self._lock = self._lock or asyncio.Lock()
        if value.nbytes <= _SMALL_BYTES:
            store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
            await store.write(value.materialize())
            self._progress(value.nbytes)
            return
        async with self._lock:
            if self.failure is not None:
                return
            store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
            if not value.stacked:
                await store.write(value.materialize())
                self._progress(value.nbytes)
                return
            shape = store.chunk_layout.write_chunk.shape
            chunk = shape[0] if shape and shape[0] else value.count
            step = max(1, _WRITE_BYTES * value.count // (chunk * value.nbytes)) * chunk
            for start in range(0, value.count, step):
                group = range(start, min(start + step, value.count))
                # Not assigned to a name, so that it is released before the next group is made.
                await store[start : group.stop].write(value.layers(group))
                self._progress(value.nbytes // value.count * len(group))


class StoredParams:
    """A checkpoint of parameters that is read parameter by parameter."""

    def __init__(self, path: epath.Path) -> None:
        """Read the shapes.

        Raises:
          UserError: there is no readable checkpoint of parameters.
        """
        self.path = path
        with naming_good_step(path.parent):
            self._record = read_record(path.parent)
            self._saved = saved_shapes(path, self._record)
        self.shapes: dict[str, jax.ShapeDtypeStruct] = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for name, leaf in traverse_util.flatten_dict(self._saved, sep="/").items()
        }

    def read(self, name: str) -> np.ndarray:
        """Return the array at the path `name` (joined by "/"), in the saved dtype.

        Raises:
          UserError: it is not what was saved.
        """
        struct = traverse_util.unflatten_dict({name: self.shapes[name]}, sep="/")
        with naming_good_step(self.path.parent):
            tree = read_arrays(self.path, struct, self._saved, self._record)
        return np.asarray(traverse_util.flatten_dict(tree, sep="/")[name])
