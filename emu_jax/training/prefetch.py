"""Read batches and copy them to the devices one step ahead, each with the data state that follows it."""

import dataclasses
import math
import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from emu_jax.errors import UserError
from emu_jax.sharding.axes import ACT_BATCH
from emu_jax.sharding.rules import DEFAULT_RULES


@runtime_checkable
class Data(Protocol):
    """Iterator of this process's rows of each global batch, with a state that can be saved and restored."""

    def __next__(self) -> Mapping[str, np.ndarray]:
        """Return the next batch."""

    def get_state(self) -> Any:
        """Return a state (fit for JSON) from which `set_state` continues after the last batch returned."""

    def set_state(self, state: Any) -> None:
        """Continue from a state of `get_state`."""


@dataclasses.dataclass(frozen=True)
class Prefetched:
    """A batch on the devices, and the state of the data after it."""

    batch: dict[str, jax.Array]
    state: Any


def batch_shardings(spec: Mapping[str, jax.ShapeDtypeStruct], *, mesh: Mesh) -> dict[str, NamedSharding]:
    """Return the shardings of a global batch: its first axis over the batch axes of the mesh.

    Raises:
      UserError: the batch size is not a multiple of these axes, or a process would need rows of another process.
    """
    sharding = NamedSharding(mesh, nn.logical_to_mesh_axes((ACT_BATCH,), DEFAULT_RULES))
    rows = next(iter(spec.values())).shape[0]
    parts = math.prod(mesh.shape[name] for name in jax.tree.leaves(tuple(sharding.spec)))
    if rows % parts:
        raise UserError(
            f"The batch size {rows} is not divisible by {parts} devices; choose a batch size that is a multiple of "
            f"{parts}."
        )
    starts = {index[0].start or 0 for index in sharding.addressable_devices_indices_map((rows,)).values() if index}
    needed = len(starts) * (rows // parts)
    per_process = rows // len({device.process_index for device in mesh.devices.flat})
    if needed != per_process:
        raise UserError(
            f"On this mesh a process needs {needed} rows of each batch of {rows}, but reads {per_process}: keep "
            "mesh.tensor within the devices of one process."
        )
    return dict.fromkeys(spec, sharding)


class Prefetcher:
    """Iterator that reads in its own thread, so that reading and computing overlap."""

    def __init__(self, data: Data, *, spec: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh, depth: int = 1) -> None:
        """Start to read `depth` batches ahead; `spec` holds the shapes of the global batch."""
        self._data, self._spec = data, spec
        self._shardings = batch_shardings(spec, mesh=mesh)
        self._queue: queue.Queue[Prefetched | BaseException] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="emu_jax_prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Prefetched]:
        return self

    def __next__(self) -> Prefetched:
        """Return the next batch, or raise the error that reading it raised."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join(timeout=10)

    def _read(self) -> None:
        try:
            while not self._stop.is_set():
                batch = next(self._data)
                self._put(Prefetched(self._to_devices(batch), self._data.get_state()))
        except StopIteration:
            self._put(UserError("The data ended before the run: let the data sets repeat, or lower train.steps."))
        except BaseException as error:
            self._put(error)

    def _put(self, item: Prefetched | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def _to_devices(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        if set(batch) != set(self._spec):
            raise UserError(f"The data has {sorted(batch)}, but the stage requires {sorted(self._spec)}.")
        arrays = {}
        for name, leaf in self._spec.items():
            rows = leaf.shape[0] // jax.process_count()
            value = np.asarray(batch[name])
            if value.shape != (rows, *leaf.shape[1:]) or value.dtype != leaf.dtype:
                raise UserError(
                    f"The data's {name} is {value.dtype}{list(value.shape)}, but the stage requires "
                    f"{np.dtype(leaf.dtype)}{[rows, *leaf.shape[1:]]} from each process."
                )
            arrays[name] = jax.make_array_from_process_local_data(self._shardings[name], value, leaf.shape)
        return arrays
