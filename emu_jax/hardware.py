"""Facts about accelerators: which kind a program is traced for, and what one device of it can do."""

import dataclasses
import glob
import os

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device of a TPU generation: a chip with all its cores, except on v7x, where each chip is two devices.

    Attributes:
      clock: matrix-unit clock in Hz; operations per cycle times the clock give `peak`.
      peak: dense bfloat16 operations per second, from the data sheet.
      memory: bytes of HBM that the compiler lets a program use.
      bandwidth: bytes per second between HBM and the cores.
      link: bytes per second in one direction of one interconnect link, per device.
      dimensions: number of dimensions of the torus that connects the chips.
      devices: number of JAX devices per chip.
    """

    clock: float
    peak: float
    memory: float
    bandwidth: float
    link: float
    dimensions: int
    devices: int = 1

    @property
    def unit(self) -> str:
        """Name of one JAX device in messages: "chip", or "device" where a chip has several."""
        return "chip" if self.devices == 1 else "device"


GIB = 2**30

# Data sheets: cloud.google.com/tpu/docs/system-architecture-tpu-vm. `memory` is the limit at which libtpu refuses.
CHIPS = {
    "v4": Chip(1.05e9, 275e12, 30.75 * GIB, 1228e9, 45e9, 3),
    "v5e": Chip(1.503e9, 197e12, 15.75 * GIB, 819e9, 45e9, 2),
    "v5p": Chip(1.75e9, 459e12, 95.73 * GIB, 2765e9, 90e9, 3),
    "v6e": Chip(1.75e9, 918e12, 31.24 * GIB, 1640e9, 90e9, 2),
    # The clock follows from the peak, if each core has as many matrix units of the same size as one of v6e.
    "v7x": Chip(2.2e9, 1153.5e12, 94.74 * GIB, 3690e9, 90e9, 3, devices=2),
}

# Part of a TPU's `device_kind` -> generation; the first match counts.
_GENERATIONS = (
    ("v4", "v4"),
    ("v5 lite", "v5e"),
    ("v5e", "v5e"),
    ("v5", "v5p"),
    ("v6", "v6e"),
    ("7x", "v7x"),
)

# Part of a GPU's `device_kind` -> dense bfloat16 operations per second, from the data sheet.
_GPU_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


def generation(device_kind: str) -> str | None:
    """Return the TPU generation of a `device_kind`: `"TPU v5 lite"` is `"v5e"`; None for other devices."""
    return next((name for part, name in _GENERATIONS if part in device_kind), None)


def peak_flops(device_kind: str) -> float | None:
    """Return the dense bfloat16 operations per second of one device; None if unknown (a CPU)."""
    name = generation(device_kind)
    if name is not None:
        return CHIPS[name].peak
    return next((peak for part, peak in _GPU_PEAKS.items() if part in device_kind), None)


def on_tpu() -> bool:
    """Return True when tracing for TPUs: the devices of the current mesh, or JAX's default backend without a mesh.

    The TPUs may be attached or only compiled for.
    """
    return _platform() == "tpu"


def on_cpu() -> bool:
    """Return True when tracing for CPUs; see `on_tpu`."""
    return _platform() == "cpu"


def _platform() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    return next((name for name in ("tpu", "cpu") if device.device_kind.lower().startswith(name)), device.device_kind)


def tpu_attached() -> bool:
    """Return True on a TPU machine, from device files and environment variables; no device is started."""
    chips = glob.glob("/dev/accel[0-9]*") or (glob.glob("/dev/vfio/[0-9]*") and not glob.glob("/dev/nvidia[0-9]*"))
    return bool(chips) or "TPU_WORKER_ID" in os.environ


def device_memory() -> int | None:
    """Return the bytes of memory of one local device; on CPUs its part of the machine's memory; None if unknown."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")
