"""Batches of examples with prompts of similar length, so that few programs are compiled."""

import dataclasses
from collections.abc import Sequence

from emu_jax.evaluation.example import Example
from emu_jax.generation.buckets import bucket


@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples that go through the model together.

    Attributes:
      number: position in the plan; the same for any number of processes.
      rows: rows of the compiled program; the last batch of a plan is filled up to it.
    """

    number: int
    examples: tuple[Example, ...]
    rows: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All batches. Each compiled length occurs in the first `warm_up` of them, so later ones compile nothing."""

    batches: tuple[Batch, ...]
    warm_up: int


def plan_batches(examples: Sequence[Example], lengths: Sequence[int], *, batch_size: int) -> Plan:
    """Sort by prompt length and split into batches. The plan depends on nothing else, so a resumed run repeats it."""
    order = sorted(range(len(examples)), key=lambda i: (lengths[i], i))
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    seen: set[int] = set()
    first: list[list[int]] = []
    later: list[list[int]] = []
    for group in groups:
        size = bucket(max(lengths[i] for i in group))
        (later if size in seen else first).append(group)
        seen.add(size)
    rows = min(batch_size, len(examples))
    batches = tuple(Batch(n, tuple(examples[i] for i in group), rows) for n, group in enumerate(first + later))
    return Plan(batches, len(first))
