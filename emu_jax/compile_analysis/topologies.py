"""The pods that can be compiled for, and what one of their chips can do."""

import dataclasses
import difflib
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from emu_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a generation: a chip with all its cores, but half a chip of v7x, as jax counts there.

    Attributes:
      clock: Hz, such that the matrix units' operations a cycle times it give `peak`.
      peak: dense bfloat16 operations a second, from the maker's data sheet.
      memory: bytes of HBM above which the compiler refuses a program.
      bandwidth: bytes a second between HBM and the cores.
      link: bytes a second over one link of the interconnect, one way; a device's share of it.
      dimensions: of the torus.
      sizes: the slices on offer.
      platform_name: what libtpu calls the generation.
      config: libtpu's name for "one device is as much of a chip as can be".
      devices: in one chip.
    """

    clock: float
    peak: float
    memory: float
    bandwidth: float
    link: float
    dimensions: int
    sizes: tuple[str, ...]
    platform_name: str
    config: str
    devices: int = 1

    @property
    def device(self) -> str:
        """The word for one."""
        return "chip" if self.devices == 1 else "device"


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
_GIB = 2**30

# Data sheets: cloud.google.com/tpu/docs/system-architecture-tpu-vm; memory: where libtpu stops compiling.
CHIPS = {
    "v4": Chip(1.05e9, 275e12, 30.75 * _GIB, 1228e9, 45e9, 3, _CUBES, "v4", "megacore"),
    "v5e": Chip(1.503e9, 197e12, 15.75 * _GIB, 819e9, 45e9, 2, _FLAT, "v5e", "default"),
    "v5p": Chip(1.75e9, 459e12, 95.73 * _GIB, 2765e9, 90e9, 3, _CUBES, "v5", "megacore"),
    "v6e": Chip(1.75e9, 918e12, 31.24 * _GIB, 1640e9, 90e9, 2, _FLAT, "v6e", "default"),
    # The clock is what the size of v6e's matrix units, which a core has as many of, makes of the peak.
    "v7x": Chip(2.2e9, 1153.5e12, 94.74 * _GIB, 3690e9, 90e9, 3, _CUBES, "tpu7x", "default", devices=2),
}


# libtpu asks a cloud machine's metadata server what it runs on, and takes a lock on the TPU; here is neither.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` equal slices of a TPU generation, each a block of `sides` chips."""

    generation: str
    sides: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """In all slices."""
        return math.prod(self.sides) * self.slices

    @property
    def devices(self) -> int:
        """As jax counts them, in all slices."""
        return self.chips * self.chip.devices

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Along which sides the last chip is linked to the first."""
        if self.chip.dimensions == 3:
            return (all(side % 4 == 0 for side in self.sides),) * 3
        return tuple(side == 16 for side in self.sides)

    def __str__(self) -> str:
        name = f"{self.generation}:{'x'.join(map(str, self.sides))}"
        return name if self.slices == 1 else f"{self.slices} x {name}"


def known() -> list[str]:
    """Every topology that `read_topology` takes."""
    return [f"{name}:{size}" for name, chip in CHIPS.items() for size in chip.sizes]


def read_topology(text: str, *, slices: int = 1) -> Topology:
    """`"v5p:4x4x4"` as a Topology.

    Raises:
      UserError: no such one; the known ones are listed.
    """
    if text not in known():
        close = difflib.get_close_matches(text, known(), n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"There is no topology {text!r}; {hint}The known ones are {', '.join(known())}.")
    if slices < 1:
        raise UserError(f"--slices must be at least 1, not {slices}.")
    generation, _, sides = text.partition(":")
    return Topology(generation, tuple(map(int, sides.split("x"))), slices)


def compile_devices(topology: Topology) -> list[jax.Device]:
    """Devices that programs can be compiled for and not run on, in the order of the chips.

    Raises:
      UserError: libtpu is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("The TPU compiler is not installed; pip install -e '.[compile]' brings it (libtpu, 130 MB).")
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    chip = topology.chip
    wraps = (*topology.wraps, False)[:3]  # libtpu wants three also of a flat torus
    options: dict[str, object] = {"wrap": wraps, "num_slices": topology.slices}
    if chip.dimensions == 3:
        options["chips_per_host_bounds"] = (2, 2, 1)
    name = f"{chip.platform_name}:{'x'.join(map(str, topology.sides))}"
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chip_config_name=chip.config, **options
        )
    except (RuntimeError, ValueError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise UserError(f"This libtpu cannot compile for {topology}: {reason}") from None
    devices = list(description.devices)
    if len(devices) != topology.devices:
        raise UserError(f"This libtpu makes {len(devices)} devices of {topology}, which has {topology.devices}.")
    return devices
