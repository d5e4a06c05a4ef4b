"""TPU topologies that can be compiled for without a TPU."""

import dataclasses
import difflib
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from emu_jax.errors import UserError
from emu_jax.hardware import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class CompilerTarget:
    """Names and slice sizes of a TPU generation in libtpu.

    Attributes:
      platform_name: first part of a topology name.
      chip_config: configuration in which one JAX device is as much of a chip as possible.
      sizes: available slices, in chips per torus dimension.
    """

    platform_name: str
    chip_config: str
    sizes: tuple[str, ...]


_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")

TARGETS = {
    "v4": CompilerTarget("v4", "megacore", _3D),
    "v5e": CompilerTarget("v5e", "default", _2D),
    "v5p": CompilerTarget("v5", "megacore", _3D),
    "v6e": CompilerTarget("v6e", "default", _2D),
    "v7x": CompilerTarget("tpu7x", "default", _3D),
}

# libtpu would query the metadata server of a cloud machine and lock the TPU; this machine may have neither.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more equal slices of a TPU generation, each with `sides` chips along the torus dimensions."""

    generation: str
    sides: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """Facts about one device."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """Number of chips in all slices."""
        return math.prod(self.sides) * self.slices

    @property
    def devices(self) -> int:
        """Number of JAX devices in all slices."""
        return self.chips * self.chip.devices

    @property
    def wraps(self) -> tuple[bool, ...]:
        """True for each torus dimension whose last chip is linked to the first."""
        if self.chip.dimensions == 3:
            return (all(side % 4 == 0 for side in self.sides),) * 3
        return tuple(side == 16 for side in self.sides)

    def __str__(self) -> str:
        name = f"{self.generation}:{'x'.join(map(str, self.sides))}"
        return name if self.slices == 1 else f"{self.slices} x {name}"


def topology_names() -> list[str]:
    """Return every name that `parse_topology` accepts."""
    return [f"{name}:{size}" for name, target in TARGETS.items() for size in target.sizes]


def parse_topology(text: str, *, slices: int = 1) -> Topology:
    """Parse a name such as `"v5p:4x4x4"`, or the accelerator type of Google Cloud, such as `"v5p-128"`.

    The number in an accelerator type counts TensorCores for v4, v5p and tpu7x, and chips for v5litepod and v6e.

    Raises:
      UserError: an unknown name, or fewer than one slice.
    """
    names = topology_names()
    text = _accelerator_types().get(text.lower(), text)
    if text not in names:
        close = difflib.get_close_matches(text, names, n=1, cutoff=0.6)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise UserError(
            f"There is no topology {text!r}. {hint}The topologies are {', '.join(names)}, and "
            "accelerator types such as v5p-128 and v5litepod-256."
        )
    if slices < 1:
        raise UserError(f"--slices must be at least 1, not {slices}.")
    generation, _, sides = text.partition(":")
    return Topology(generation, tuple(map(int, sides.split("x"))), slices)


# Names of the accelerator types on Google Cloud, and the TensorCores per chip that their numbers count.
_CLOUD = {
    "v4": ("v4", 2), "v5p": ("v5p", 2), "v5litepod": ("v5e", 1), "v5e": ("v5e", 1), "v6e": ("v6e", 1),
    "tpu7x": ("v7x", 2), "v7x": ("v7x", 2),
}  # fmt: skip


def _accelerator_types() -> dict[str, str]:
    """Return the topology of each accelerator type: v5p-128 -> v5p:4x4x4, v5litepod-256 -> v5e:16x16."""
    return {
        f"{cloud}-{math.prod(map(int, size.split('x'))) * cores}": f"{generation}:{size}"
        for cloud, (generation, cores) in _CLOUD.items()
        for size in TARGETS[generation].sizes
    }


def compile_devices(topology: Topology) -> list[jax.Device]:
    """Return devices that programs can be compiled for, but not run on, in the order of the chips.

    Raises:
      UserError: libtpu is not installed, or does not support the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "The TPU compiler (libtpu, 130 MB) is not installed. Install it by pip install -e '.[compile]'."
        )
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    chip, target = topology.chip, TARGETS[topology.generation]
    wraps = (*topology.wraps, False)[:3]  # libtpu requires three values, also for a 2D torus
    options: dict[str, object] = {"wrap": wraps, "num_slices": topology.slices}
    if chip.dimensions == 3:
        options["chips_per_host_bounds"] = (2, 2, 1)
    name = f"{target.platform_name}:{'x'.join(map(str, topology.sides))}"
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chip_config_name=target.chip_config, **options
        )
    except (RuntimeError, ValueError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise UserError(f"libtpu cannot compile for {topology}: {reason}") from None
    devices = list(description.devices)
    if len(devices) != topology.devices:
        raise UserError(f"This libtpu reports {len(devices)} devices for {topology}, which has {topology.devices}.")
    return devices
