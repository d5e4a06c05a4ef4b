"""Divide a stream of items among processes, so that it can resume with another number of them.

Row r of global batch b is item b * batch_size + r of the stream, for any number of processes, so the batches do not
depend on it. The exception are streams with skipped items, such as documents without an image: each process reads
further to fill its rows.
"""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from emu_jax.data.loader.read_plan import ReadPlan
from emu_jax.errors import UserError

STATE_FORMAT = "emu_items_1"


class DividedBatches(grain.DatasetIterator):
    """Batches of the rows of one process. `set_states` continues a run of any number of processes."""

    def __init__(self, items: grain.MapDataset, *, batch_size: int, process_index: int, process_count: int) -> None:
        """Take the endless stream of all processes; items that are None are skipped.

        Raises:
          UserError: `batch_size` does not divide among the processes.
        """
        super().__init__()
        self._items, self._batch_size = items, batch_size
        self._index, self._count = process_index, process_count
        self._rows = rows_per_process(batch_size, process_count)
        self._start(ReadPlan())

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        return {
            "format": STATE_FORMAT,
            "process_index": self._index,
            "process_count": self._count,
            "batch_size": self._batch_size,
            "plan": {"base": self._plan.base, "leftover": list(self._plan.leftover)},
            "reader": self._batches.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        saved = (state["process_index"], state["process_count"], state["batch_size"])
        if saved != (self._index, self._count, self._batch_size):
            raise UserError(
                "The data state was saved by process {} of {} with batches of {}, and this is process {} of {} with "
                "batches of {}.".format(*saved, self._index, self._count, self._batch_size)
            )
        self._start(ReadPlan(int(state["plan"]["base"]), tuple(state["plan"]["leftover"])))
        self._batches.set_state(state["reader"])

    def set_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Continue from the states of all processes of a run.

        With the same number of processes, the next batch is the same bit for bit. With another, every item is still
        read once: first those that only some processes had reached.

        Raises:
          UserError: the states are those of an older version with several processes.
        """
        if any(state.get("format") != STATE_FORMAT for state in states):
            if (len(states), self._count) != (1, 1):
                raise UserError(
                    "The data states of this checkpoint are of an older version, which divided the data in another "
                    "way. Start another run with train.warm_start."
                )
            self._batches.set_state(states[0])
        elif len(states) == self._count:
            self.set_state(states[self._index])
        else:
            self._start(plan_from_items(states))

    def _start(self, plan: ReadPlan) -> None:
        self._plan = plan
        own = _OwnItems(self._items, plan, rows=self._rows, batch_size=self._batch_size, process=self._index)
        self._batches = iter(own.to_iter_dataset().batch(self._rows))


class _OwnItems(grain.MapDataset):
    """The items of one process."""

    def __init__(self, parent: grain.MapDataset, plan: ReadPlan, *, rows: int, batch_size: int, process: int) -> None:
        super().__init__(parent)
        self._plan, self._rows, self._batch_size, self._process = plan, rows, batch_size, process

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: int) -> Any:
        position = stream_index(index, rows=self._rows, batch_size=self._batch_size, process=self._process)
        return self._parent[self._plan.position(position)]


def stream_index(index: int, *, rows: int, batch_size: int, process: int) -> int:
    """Return the index in the stream of item `index` of a process.

    With batches of 4 on two processes, process 1 reads 2, 3, 6, 7, ...
    """
    batch, row = divmod(index, rows)
    return batch * batch_size + process * rows + row


def plan_from_items(states: Sequence[dict[str, Any]]) -> ReadPlan:
    """Return the plan with which any number of processes resumes, from the states of all processes of a run."""
    first = states[0]
    plan, batch_size, count = first["plan"], int(first["batch_size"]), len(states)
    rows = batch_size // count
    saved = ReadPlan(int(plan["base"]), tuple(plan["leftover"]))
    read = {int(state["process_index"]): int(state["reader"]["next_index"]) for state in states}
    complete = min(n // rows for n in read.values()) * batch_size  # all processes have read the items before this one
    indices = {
        stream_index(i, rows=rows, batch_size=batch_size, process=process)
        for process, n in read.items()
        for i in range(complete // count, n)
    }
    end = max(indices, default=complete - 1) + 1
    unread = [i for i in range(complete, end) if i not in indices]
    # Leftover items of an earlier change that are still unread keep their order.
    unread += list(range(end, len(saved.leftover)))
    base = saved.base + max(end - len(saved.leftover), 0)
    return ReadPlan(base=base, leftover=tuple(saved.position(i) for i in unread))


def rows_per_process(batch_size: int, process_count: int) -> int:
    """Return this process's rows of a global batch. Raises UserError if it does not divide among the processes."""
    if batch_size % process_count:
        raise UserError(f"A batch of {batch_size} examples does not divide among {process_count} processes.")
    return batch_size // process_count
