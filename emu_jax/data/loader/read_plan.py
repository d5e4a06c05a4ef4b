"""The positions of the stream that readers start from, also after the number of readers has changed."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from emu_jax.errors import UserError

STATE_FORMAT = "emu_reader_1"


@dataclasses.dataclass(frozen=True)
class ReadPlan:
    """First the positions left over from an earlier run, then every position from `base` on."""

    base: int = 0
    leftover: tuple[int, ...] = ()

    def position(self, index: int) -> int:
        """Return the position of the stream at an index of this plan."""
        if index < len(self.leftover):
            return self.leftover[index]
        return self.base + index - len(self.leftover)


def plans_from_states(states: Sequence[dict[str, Any]]) -> tuple[ReadPlan, ...]:
    """Return the plans with which any number of readers resumes, from the loader states of all processes of a run.

    Positions that were waiting to be packed, and positions that slower readers had not reached, are read first; then
    the stream continues. Each document is still used once per epoch; only the order differs.

    Raises:
      UserError: the state of a process is missing.
    """
    if not states:
        raise UserError("There is no data state to resume from.")
    indices, count = {s["process_index"] for s in states}, states[0]["process_count"]
    if indices != set(range(count)) or len(states) != count:
        raise UserError(f"The run had {count} processes, but there are data states of {sorted(indices)} only.")
    found = [reader for state in states for reader in _reader_states(state["reader"])]
    readers = {reader["shard"]: reader for reader in found if not is_unread(reader)}
    first = next(iter(readers.values()), found[0])
    shards = first["shards"]
    plans = []
    for number, saved in enumerate(first["plans"]):
        plan = ReadPlan(int(saved["base"]), tuple(saved["leftover"]))
        read = [int(readers[s]["streams"][number]["read"]) if s in readers else 0 for s in range(shards)]
        waiting = [p for r in readers.values() for p in r["streams"][number]["waiting"]]
        end = max([len(plan.leftover), *(s + shards * (n - 1) + 1 for s, n in enumerate(read) if n)])
        unread = [plan.position(i) for i in range(end) if i // shards >= read[i % shards]]
        plans.append(ReadPlan(base=plan.base + end - len(plan.leftover), leftover=tuple(sorted([*waiting, *unread]))))
    return tuple(plans)


def is_unread(state: dict[str, Any]) -> bool:
    """Return True for the state of a reader that has read nothing."""
    return not any(stream["read"] for stream in state["streams"])


def _reader_states(state: Any) -> Iterable[dict[str, Any]]:
    """Yield the states of readers, wherever Grain has stored them in its own state."""
    if isinstance(state, dict):
        if state.get("format") == STATE_FORMAT:
            yield state
            return
        state = list(state.values())
    if isinstance(state, list | tuple):
        for part in state:
            yield from _reader_states(part)
