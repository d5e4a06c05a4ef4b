"""Estimate the time of a compiled program from the compiler's cycles, the schedule and the trip counts of loops.

- A matmul takes the longer of its estimated cycles and the time to move its bytes.
- Any other instruction takes the shorter of the two: for simple fusions, the compiler's cycles are two to three times
  the time that HBM needs.
- Attention kernels have no cycles. They take their operations at a counted efficiency (`kernels.py`).
- A collective takes at least its bytes over the links. An asynchronous one costs only the part that the work between
  its start and its end does not hide.
"""

import dataclasses
import re
from collections.abc import Iterator

from emu_jax.compile_analysis.arithmetic import hbm_traffic, matrix_flops
from emu_jax.compile_analysis.collectives import Network, collective_kind
from emu_jax.compile_analysis.hlo import Computation, Instruction, Module
from emu_jax.compile_analysis.kernels import EFFICIENCY, kernel_flops
from emu_jax.compile_analysis.loops import trip_count
from emu_jax.hardware import Chip

HBM_EFFICIENCY = 0.8  # fraction of the data sheet's bandwidth that streaming fusions reach

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "copy-start", "copy-done", "slice-start", "slice-done", "opt-barrier", "add-dependency", "iota", "recv",
}  # fmt: skip


@dataclasses.dataclass
class CollectiveUse:
    """Sum over all collectives of one kind, inside or outside of loops, overlapped or not.

    Attributes:
      kind: such as "all-gather".
      in_loop: they run inside a loop.
      overlapped: they run asynchronously, next to other work.
      count: runs per step.
      bytes: bytes of all runs.
      seconds: minimum time of all runs, exposed or hidden.
    """

    kind: str
    in_loop: bool
    overlapped: bool
    count: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0


@dataclasses.dataclass
class Cost:
    """Estimated cost of one run of a program on one chip.

    Attributes:
      seconds: time including exposed collectives.
      compute_seconds: time without collectives.
      flops: operations of matmuls and kernels, including recomputation.
      by_operation: op name -> seconds of all runs.
      collectives: sums per kind, longest first.
      unknown_loops: names of loops whose trip count depends on data; they count as one iteration.
      between_slices: bytes sent to other slices, whose time is not in `seconds`.
    """

    seconds: float = 0.0
    compute_seconds: float = 0.0
    flops: float = 0.0
    by_operation: dict[str, float] = dataclasses.field(default_factory=dict)
    collectives: list[CollectiveUse] = dataclasses.field(default_factory=list)
    unknown_loops: list[str] = dataclasses.field(default_factory=list)
    between_slices: float = 0.0

    @property
    def exposed_seconds(self) -> float:
        """Time of collectives that no other work hides."""
        return self.seconds - self.compute_seconds


def estimate(text: str, *, generation: str, chip: Chip, network: Network) -> Cost:
    """Estimate the cost of the compiled program `text` (`compiled.as_text()`)."""
    simulation = _Simulation(Module(text), generation, chip, network)
    simulation.run(simulation.module.entry, 1)
    cost = simulation.cost
    cost.seconds, cost.compute_seconds = simulation.now, simulation.busy
    cost.collectives = sorted(simulation.uses.values(), key=lambda use: -use.seconds)
    return cost


class _Simulation:
    """Simulate one chip: instructions run in order, asynchronous transfers run next to them."""

    def __init__(self, module: Module, generation: str, chip: Chip, network: Network) -> None:
        self.module, self.chip, self.network = module, chip, network
        self.forward, self.backward = EFFICIENCY[generation]
        self.cost = Cost()
        self.uses: dict[tuple[str, bool, bool], CollectiveUse] = {}
        self.now = self.busy = 0.0
        self._pending: dict[str, float] = {}
        self._link_free = 0.0
        self._started: set[tuple[str, str]] = set()
        self._deferred: dict[str, Computation] = {}

    def run(self, computation: Computation, times: float) -> None:
        """Advance the time by one run of `computation`, and add its counts `times` times."""
        for instruction in computation:
            opcode = instruction.opcode
            if opcode == "while":
                self._loop(instruction, computation, times)
            elif opcode == "conditional":
                self._longest_branch(instruction, times)
            elif opcode == "call" and (inner := self.module.called(instruction, "to_apply")) is not None:
                self.run(inner, times)
            elif collective_kind(instruction) is not None:
                self._collective(instruction, instruction.name, times, overlapped=opcode.endswith("-start"))
            elif opcode == "custom-call":
                self._kernel(instruction, computation, times)
            elif opcode == "send":  # to another slice, through the hosts
                self.cost.between_slices += instruction.shapes[0].bytes * times
            elif opcode.endswith("-start") and (inner := _called(self.module, instruction)) is not None:
                self._deferred[instruction.name] = inner
                if instruction.operands:
                    self._start_deferred(instruction.name, instruction.name, times)
            elif opcode.endswith("-update"):  # passes the data to a SparseCore that was started without them
                self._start_deferred(instruction.operands[0], instruction.name, times)
            elif opcode.endswith("-done"):
                self._wait(instruction.operands[0])
            elif opcode not in _FREE:
                self._compute(instruction, computation, times)

    def _loop(self, loop: Instruction, computation: Computation, times: float) -> None:
        count = trip_count(self.module, loop, computation)
        body = self.module.called(loop, "body")
        if count is None:
            self.cost.unknown_loops.append(loop.name)
        if body is None or count == 0:
            return
        before, busy_before = self.now, self.busy
        self.run(body, times * (count or 1))
        remaining = (count or 1) - 1
        self.now += remaining * (self.now - before)
        self.busy += remaining * (self.busy - busy_before)

    def _longest_branch(self, conditional: Instruction, times: float) -> None:
        names = re.search(r"branch_computations=\{([^}]*)\}", conditional.attributes)
        listed = re.findall(r"[\w.\-<>]+", names.group(1)) if names else []
        listed += [name for role in ("true_computation", "false_computation") if (name := conditional.called(role))]
        branches = [self.module.computations[name] for name in listed if name in self.module.computations]
        if branches:
            self.run(max(branches, key=lambda branch: len(branch.instructions)), times)

    def _compute(self, instruction: Instruction, computation: Computation, times: float) -> None:
        inner = self.module.called(instruction, "calls") if instruction.opcode == "fusion" else None
        flops = matrix_flops(self.module, instruction, computation)
        cycles = _cycles(self.module, instruction)
        communicates = inner is not None and self._fused_collectives(instruction, inner, computation, flops, times)
        if communicates and not flops and cycles is None:
            return
        by_bytes = hbm_traffic(self.module, instruction, computation) / (self.chip.bandwidth * HBM_EFFICIENCY)
        by_cycles = by_bytes if cycles is None else cycles / self.chip.clock
        self._advance(instruction, max(by_cycles, by_bytes) if flops else min(by_cycles, by_bytes), times)
        self.cost.flops += flops * times
        if inner is not None:
            for found in _kernels(self.module, inner):
                self._kernel(found, inner, times)

    def _fused_collectives(
        self, fusion: Instruction, inner: Computation, computation: Computation, flops: float, times: float
    ) -> bool:
        """Run the collectives inside a fusion, overlapped with its matmuls. Return True if there are any."""
        found = list(_collectives(self.module, inner))
        scatters = _scatters(inner)
        for collective in found:
            channel = re.search(r"channel_id=(\d+)", collective.attributes)
            key = channel.group(1) if channel else collective.name
            if not scatters and (computation.name, key) in self._started:
                if "done" in fusion.name:
                    self._wait(key)
                continue
            self._started.add((computation.name, key))
            overlapped = not scatters and (flops > 0 or "async" in inner.name or "async" in fusion.name)
            self._collective(collective, key, times, overlapped=overlapped, scatters=scatters)
        return bool(found)

    def _collective(
        self, instruction: Instruction, key: str, times: float, *, overlapped: bool, scatters: bool = False
    ) -> None:
        measured = self.network.measure(instruction, scatters=scatters)
        if measured.group <= 1:
            return
        if self.network.crosses_slices(instruction):
            self.cost.between_slices += measured.bytes * times
        group = (measured.kind, times > 1, overlapped)
        use = self.uses.setdefault(group, CollectiveUse(*group))
        use.count += times
        use.bytes += measured.bytes * times
        use.seconds += measured.seconds * times
        if overlapped:
            self._pending[key] = self._link_free = max(self.now, self._link_free) + measured.seconds
        else:
            self.now += measured.seconds

    def _start_deferred(self, start: str, key: str, times: float) -> None:
        """Start the collectives of the instruction `start`, if not yet started. Their end is awaited as `key`."""
        inner = self._deferred.pop(start, None)
        for found in _collectives(self.module, inner):
            self._collective(found, key, times, overlapped=True, scatters=inner is not None and _scatters(inner))
        if start in self._pending and start != key:
            self._pending[key] = self._pending.pop(start)

    def _kernel(self, instruction: Instruction, computation: Computation, times: float) -> None:
        if 'custom_call_target="tpu_custom_call"' not in instruction.attributes:
            return
        flops, backward = kernel_flops(instruction, computation)
        operands = (computation.get(name) for name in instruction.operands)
        moved = instruction.hbm_bytes() + sum(operand.hbm_bytes() for operand in operands if operand is not None)
        efficiency = self.backward if backward else self.forward
        seconds = max(flops / (self.chip.peak * efficiency), moved / (self.chip.bandwidth * HBM_EFFICIENCY))
        self._advance(instruction, seconds, times)
        self.cost.flops += flops * times

    def _advance(self, instruction: Instruction, seconds: float, times: float) -> None:
        self.now += seconds
        self.busy += seconds
        name = instruction.op_name or instruction.opcode
        self.cost.by_operation[name] = self.cost.by_operation.get(name, 0.0) + seconds * times

    def _wait(self, key: str) -> None:
        self.now = max(self.now, self._pending.pop(key, 0.0))


def _cycles(module: Module, instruction: Instruction) -> float | None:
    """Return the compiler's cycles of the instruction, or else of the computation that it calls."""
    found = re.search(r'"estimated_cycles":"?(\d+)', instruction.attributes)
    if found:
        return float(found.group(1))
    inner = module.called(instruction, "calls")
    total = sum(_cycles(module, i) or 0.0 for i in inner) if inner is not None else 0.0
    return total or None


def _inside(module: Module, computation: Computation | None) -> Iterator[Instruction]:
    for instruction in computation or ():
        yield instruction
        if instruction.opcode in ("fusion", "async-start", "call-start", "call", "custom-call"):
            yield from _inside(module, _called(module, instruction))


def _called(module: Module, instruction: Instruction) -> Computation | None:
    found = (module.called(instruction, role) for role in ("calls", "to_apply", "called_computations"))
    return next((computation for computation in found if computation is not None), None)


def _collectives(module: Module, computation: Computation | None) -> Iterator[Instruction]:
    return (i for i in _inside(module, computation) if collective_kind(i) is not None)


def _kernels(module: Module, computation: Computation | None) -> Iterator[Instruction]:
    return (i for i in _inside(module, computation) if i.opcode == "custom-call")


def _scatters(computation: Computation) -> bool:
    """Return True if XLA fused an all-reduce with the slice that selects each chip's shard."""
    return "reduce-scatter" in computation.name
