"""DIR/params written and read one piece at a time, so that a model larger than memory passes through.

What is written is an Orbax checkpoint like any other; only the arrays are made when their turn comes.
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

from emu_jax.errors import UserError

_CHUNK_BYTES = 32 * 2**20  # of the arrays on disk: what one host reads when it wants a shard of one layer
_SMALL_BYTES = 2**20  # arrays up to this are written together
_WRITE_BYTES = 128 * 2**20  # as many layers as fit in this are written at once; each write waits for the disk


@dataclasses.dataclass(frozen=True)
class LazyParameter:
    """An array made layer by layer: `layer(i)` gives index i of the leading axis, or all of it when unstacked."""

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
        """How many layers `layer` gives."""
        return self.shape[0] if self.stacked else 1

    def materialize(self) -> np.ndarray:
        """The whole array."""
        if not self.stacked:
            return np.ascontiguousarray(self.layer(0), self.dtype)
        return self.layers(range(self.count))

    def layers(self, group: range) -> np.ndarray:
        """Some layers of a stacked array."""
        block = np.empty((len(group), *self.shape[1:]), self.dtype)
        for row, i in zip(block, group, strict=True):
            row[...] = self.layer(i)
        return block


def write_params(
    path: epath.Path, parameters: Mapping[str, LazyParameter], *, progress: Callable[[int], None] | None = None
) -> None:
    """Writes an Orbax checkpoint at `path` that `load_params` reads.

    Args:
      path: where the checkpoint itself goes; nothing may be there.
      parameters: by "/"-joined path.
      progress: called with the number of bytes just written.

    Raises:
      Whatever making or writing an array raised; nothing is left at `path` then.
    """
    handler = _LazyHandler(progress or (lambda _bytes: None))
    registry = type_handlers.create_type_handler_registry(
        (LazyParameter, handler), (jax.Array, type_handlers.ArrayHandler())
    )
    tree = traverse_util.unflatten_dict(dict(parameters), sep="/")
    save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,)), tree)
    with ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    ) as checkpointer:
        try:
            checkpointer.save(path, args=ocp.args.PyTreeSave(tree, save_args=save_args))
        except Exception as error:  # Orbax misses the arrays that were not written
            raise handler.failure or error from None


class _LazyHandler(type_handlers.NumpyHandler):
    """Makes and writes one array at a time, where Orbax would hold them all."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._progress = progress
        self._turn: asyncio.Lock | None = None
        self.failure: Exception | None = None

    async def _open_and_write(self, value: Any, tspec: dict[str, Any], ts_context: ts.Context) -> None:
        # An exception in here would leave the writes beside it running while Orbax closes their event loop.
        try:
            if self.failure is None:
                await self._write(value, tspec, ts_context)
        except Exception as error:
            self.failure = self.failure or error

    async def _write(self, value: LazyParameter, tspec: dict[str, Any], ts_context: ts.Context) -> None:
        self._turn = self._turn or asyncio.Lock()
        if value.nbytes <= _SMALL_BYTES:
            store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
            await store.write(value.materialize())
            self._progress(value.nbytes)
            return
        async with self._turn:
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
                await store[start : group.stop].write(value.layers(group))  # unnamed: gone before the next is made
                self._progress(value.nbytes // value.count * len(group))


class StoredParams:
    """A checkpoint of parameters, read parameter by parameter."""

    def __init__(self, path: epath.Path) -> None:
        """Reads the shapes. Raises UserError where there is no readable checkpoint of parameters."""
        self.path = path
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                tree = checkpointer.metadata(path).item_metadata.tree
        except Exception as error:
            raise UserError(f"The parameters in {path} cannot be read ({type(error).__name__}).") from error
        self.shapes: dict[str, jax.ShapeDtypeStruct] = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for name, leaf in traverse_util.flatten_dict(tree, sep="/").items()
        }

    def read(self, name: str) -> np.ndarray:
        """The array at the "/"-joined path `name`, in the type it was saved in.

        Raises:
          UserError: it is damaged.
        """
        structs = traverse_util.unflatten_dict({name: self.shapes[name]}, sep="/")
        restore_args = jax.tree.map(lambda s: ocp.RestoreArgs(restore_type=np.ndarray, dtype=s.dtype), structs)
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                tree = checkpointer.restore(
                    self.path, args=ocp.args.PyTreeRestore(structs, restore_args=restore_args, partial_restore=True)
                )
        except Exception as error:
            raise UserError(f"{name} in {self.path} cannot be read ({type(error).__name__}); it is damaged.") from error
        return traverse_util.flatten_dict(tree, sep="/")[name]
