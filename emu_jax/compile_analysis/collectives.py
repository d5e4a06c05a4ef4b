"""Collectives of a compiled program: bytes between chips, and the minimum time for them."""

import dataclasses
import math
import re

import numpy as np

from emu_jax.compile_analysis.hlo import Instruction
from emu_jax.compile_analysis.topologies import Topology

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all", "ragged-all-to-all")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: an element of `COLLECTIVES`.
      bytes: size of the complete array on one chip, after a gather or before a scatter.
      group: number of chips that take part.
      seconds: minimum time: bytes over the bandwidth of the links in the group's part of the torus.
    """

    kind: str
    bytes: float
    group: int
    seconds: float


def collective_kind(instruction: Instruction) -> str | None:
    """Return the element of `COLLECTIVES` that `instruction` runs or starts; None for other instructions."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


class Network:
    """The links between the chips of a topology. Devices are numbered like in the program."""

    def __init__(self, topology: Topology, coordinates: np.ndarray, slices: np.ndarray) -> None:
        """Take each device's torus coordinates `[devices, dimensions]` and its slice `[devices]`."""
        self._topology = topology
        self._coordinates = coordinates
        self._slices = slices

    def measure(self, instruction: Instruction, *, scatters: bool = False) -> Collective:
        """Estimate a collective. With `scatters`, each chip keeps only its shard of an all-reduce (reduce-scatter)."""
        kind = instruction.opcode.removesuffix("-start")
        shapes = instruction.shapes
        if instruction.opcode.endswith("-start"):  # (operands, results, ...)
            shapes = shapes[len(shapes) // 2 :] if kind == "all-gather" else shapes[: max(1, len(shapes) // 2)]
            if kind == "all-reduce":
                shapes = instruction.shapes
        size = sum(shape.bytes for shape in shapes)
        group = replica_group(instruction, devices=len(self._coordinates))
        count = len(group)
        if kind == "collective-permute":
            return Collective(kind, size, 2, size / self._topology.chip.link)
        if kind == "reduce-scatter":
            size *= count
        if kind == "all-reduce" and scatters:
            kind = "reduce-scatter"
        passes = 2 if kind == "all-reduce" else 1
        wire = passes * size * (count - 1) / max(count, 1)
        seconds = wire / (self._topology.chip.link * self._links(group))
        if "all-to-all" in kind and count > 4:
            seconds *= count ** (1 / max(1, self._spread(group).sum())) / 4
        return Collective(kind, size, count, seconds)

    def _spread(self, group: np.ndarray) -> np.ndarray:
        """Return for each torus dimension if the group extends along it."""
        coordinates = self._coordinates[group]
        return np.asarray([len(np.unique(coordinates[:, i])) > 1 for i in range(coordinates.shape[1])])

    def _links(self, group: np.ndarray) -> int:
        """Return the number of links over which each chip of the group can send at the same time."""
        coordinates = self._coordinates[group]
        sizes = self._coordinates.max(axis=0) + 1
        links = 0
        for i in np.flatnonzero(self._spread(group)):
            complete = len(np.unique(coordinates[:, i])) == sizes[i]
            wraps = i < len(self._topology.wraps) and self._topology.wraps[i]
            links += 2 if complete and wraps else 1
        return max(links, 1)

    def crosses_slices(self, instruction: Instruction) -> bool:
        """Return True if a part of it goes over the data center network (DCN), whose time is not estimated."""
        return len(np.unique(self._slices[replica_group(instruction, devices=len(self._slices))])) > 1


def replica_group(instruction: Instruction, *, devices: int) -> np.ndarray:
    """Return the devices of the instruction's first group, from any of XLA's notations for groups."""
    text = instruction.attributes
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    if listed:
        return np.asarray([int(device) for device in listed.group(1).split(",")])
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        dims = [int(d) for d in iota.group(3).split(",")]
        order = [int(d) for d in iota.group(4).split(",")] if iota.group(4) else list(range(len(dims)))
        grid = np.arange(math.prod(dims)).reshape(dims).transpose(order)
        return grid.reshape(int(iota.group(1)), int(iota.group(2)))[0]
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'([\w.]+)'=(\d+)", mesh.group(1))}
        grid = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        chosen = re.findall(r"'([\w.]+)'", mesh.group(2))
        index = tuple(slice(None) if name in chosen else 0 for name in sizes)
        return grid[index].reshape(-1)
    return np.arange(devices)
