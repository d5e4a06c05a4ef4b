"""Collectives of a compiled program: what they move between chips, and the least time that this takes."""

import dataclasses
import math
import re

import numpy as np

from emu_jax.compile_analysis.hlo import Instruction
from emu_jax.compile_analysis.topologies import Topology

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all", "ragged-all-to-all")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: of `KINDS`.
      bytes: of the whole array, gathered or before it is scattered, on one chip.
      group: chips that take part together.
      seconds: least time: bytes over the links that the group's block of the torus has.
    """

    kind: str
    bytes: float
    group: int
    seconds: float


def kind_of(instruction: Instruction) -> str | None:
    """Of `KINDS`, where `instruction` is a collective or begins one."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in KINDS else None


class Network:
    """The links between the chips of a topology, in the order in which a program numbers its devices."""

    def __init__(self, topology: Topology, coordinates: np.ndarray, slices: np.ndarray) -> None:
        """Args: coordinates [devices, dimensions] on the torus, and each device's slice."""
        self._topology = topology
        self._coordinates = coordinates
        self._slices = slices

    def measure(self, instruction: Instruction, *, scatters: bool = False) -> Collective:
        """`scatters`: an all-reduce of which each chip keeps only its share, as a fusion around it tells."""
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
        """Along which sides of the torus the group reaches."""
        places = self._coordinates[group]
        return np.asarray([len(np.unique(places[:, side])) > 1 for side in range(places.shape[1])])

    def _links(self, group: np.ndarray) -> int:
        """One-way links that each chip of the group can send over at once."""
        places = self._coordinates[group]
        sides = self._coordinates.max(axis=0) + 1
        links = 0
        for side in np.flatnonzero(self._spread(group)):
            whole = len(np.unique(places[:, side])) == sides[side]
            wraps = side < len(self._topology.wraps) and self._topology.wraps[side]
            links += 2 if whole and wraps else 1
        return max(links, 1)

    def crosses_slices(self, instruction: Instruction) -> bool:
        """Whether some of it goes over the data centre's network, whose time nobody here can tell."""
        return len(np.unique(self._slices[replica_group(instruction, devices=len(self._slices))])) > 1


def replica_group(instruction: Instruction, *, devices: int) -> np.ndarray:
    """The devices of the instruction's first group, in any of the ways in which XLA writes groups."""
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
