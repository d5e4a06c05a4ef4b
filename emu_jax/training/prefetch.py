"""Batches onto the devices one step ahead, each with the data state that follows it."""

import math
import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from emu_jax.errors import UserError
from emu_jax.sharding.axes import ACT_BATCH
from emu_jax.sharding.rules import DEFAULT_RULES


@runtime_checkable
class Data(Protocol):
    """What the loop reads: this process's rows of each global batch, and where the reading stands."""

    def __next__(self) -> Mapping[str, np.ndarray]:
        """The next batch."""

    def get_state(self) -> Any:
        """JSON-able: what `set_state` needs to go on with the batch after the last one given."""

    def set_state(self, state: Any) -> None:
        """Goes to a place that `get_state` told."""


class Prefetched(NamedTuple):
    """A batch on the devices, and the data's state once it has been given."""

    batch: dict[str, jax.Array]
    state: Any


def batch_shardings(spec: Mapping[str, jax.ShapeDtypeStruct], *, mesh: Mesh) -> dict[str, NamedSharding]:
    """Shardings of a global batch: its first axis over the mesh's batch axes.

    Raises:
      UserError: the batch does not divide over the mesh, or a process would need more rows than its own share.
    """
    sharding = NamedSharding(mesh, nn.logical_to_mesh_axes((ACT_BATCH,), DEFAULT_RULES))
    rows = next(iter(spec.values())).shape[0]
    parts = math.prod(mesh.shape[name] for name in jax.tree.leaves(tuple(sharding.spec)))
    if rows % parts:
        raise UserError(f"The batch of {rows} rows does not divide over {parts} devices; choose a multiple of {parts}.")
    own = {index[0].start or 0 for index in sharding.addressable_devices_indices_map((rows,)).values() if index}
    share = rows // len({device.process_index for device in mesh.devices.flat})
    if len(own) * (rows // parts) != share:
        raise UserError(
            f"On this mesh a process would read {len(own) * (rows // parts)} of {rows} rows, where "
            f"{share} are its share: keep mesh.tensor within the devices of one process."
        )
    return dict.fromkeys(spec, sharding)


class Prefetcher:
    """Reads in a thread of its own, so that reading and computing overlap."""

    def __init__(self, data: Data, *, spec: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh, depth: int = 1) -> None:
        """Starts to read; `spec` tells the shapes of the global batch."""
        self._data, self._spec = data, spec
        self._shardings = batch_shardings(spec, mesh=mesh)
        self._queue: queue.Queue[Prefetched | BaseException] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="emu_jax_prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Prefetched]:
        return self

    def __next__(self) -> Prefetched:
        """The next batch; whatever reading raised is raised here."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Ends the thread."""
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
            self._put(UserError("The data ended before the run did; let it repeat, or lower train.steps."))
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
            raise UserError(f"The data gives {sorted(batch)}, the stage wants {sorted(self._spec)}.")
        arrays = {}
        for name, leaf in self._spec.items():
            rows = leaf.shape[0] // jax.process_count()
            value = np.asarray(batch[name])
            if value.shape != (rows, *leaf.shape[1:]) or value.dtype != leaf.dtype:
                raise UserError(
                    f"The data's {name} is {value.dtype}{list(value.shape)}; the stage wants "
                    f"{np.dtype(leaf.dtype)}{[rows, *leaf.shape[1:]]} from each process."
                )
            arrays[name] = jax.make_array_from_process_local_data(self._shardings[name], value, leaf.shape)
        return arrays
