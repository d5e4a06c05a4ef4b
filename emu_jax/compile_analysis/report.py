"""Compile a program, and report the result as text and as JSON."""

import dataclasses
import re
import time
from importlib import metadata
from typing import Any

import jax
import numpy as np

from emu_jax.compile_analysis.collectives import Network
from emu_jax.compile_analysis.cost import Cost, estimate
from emu_jax.compile_analysis.memory import Memory, Temporary, largest_temporaries, measure
from emu_jax.compile_analysis.program import Program
from emu_jax.compile_analysis.topologies import Topology, compile_devices
from emu_jax.errors import UserError
from emu_jax.hardware import GIB
from emu_jax.sharding.mesh import MeshConfig, make_mesh

ESTIMATE_NOTE = (
    "This is an estimate, not a measurement: the compiler's cycles times the trip counts of the loops, and for "
    "collectives the minimum time on their links. It compares variants of a program well. An absolute MFU is accurate "
    "to 5 to 8 points. Input stalls, the network between slices and throttling are not included."
)


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of compiling one program for one topology.

    Attributes:
      program: the program.
      topology: the chips.
      mesh: axis -> size.
      compile_seconds: time to trace, lower and compile.
      memory: bytes per device.
      temporaries: the largest ones.
      cost: estimated time and communication of one device.
      text: the optimized program.
    """

    program: Program
    topology: Topology
    mesh: dict[str, int]
    compile_seconds: float
    memory: Memory
    temporaries: list[Temporary]
    cost: Cost
    text: str

    @property
    def mfu(self) -> float | None:
        """Useful operations, as a fraction of the peak of all devices in the estimated time."""
        if self.program.flops is None:
            return None
        return self.program.flops / (self.cost.seconds * self.topology.chip.peak * self.topology.devices)

    def to_json(self) -> dict[str, Any]:
        """Return all numbers. Operations are of one run on all chips; bytes and seconds are per device."""
        memory, cost = self.memory, self.cost
        return {
            "program": self.program.name,
            "topology": str(self.topology),
            "chips": self.topology.chips,
            "devices": self.topology.devices,
            "mesh": self.mesh,
            "versions": versions(),
            "compile_seconds": round(self.compile_seconds, 1),
            "hbm_bytes": memory.total,
            "hbm_limit_bytes": int(memory.limit),
            "fits": memory.fits,
            "memory": {name: getattr(memory, name) for name in ("arguments", "outputs", "temporaries", "code", "peak")},
            "largest_temporaries": [dataclasses.asdict(temporary) for temporary in self.temporaries],
            "collectives": [dataclasses.asdict(use) for use in cost.collectives],
            "bytes_between_slices": cost.between_slices,
            "model_flops": self.program.flops,
            "hardware_flops": cost.flops * self.topology.devices,
            "step_seconds_estimate": cost.seconds,
            "exposed_collective_seconds": cost.exposed_seconds,
            "mfu_estimate": self.mfu,
            "tokens_per_second": self.program.tokens / cost.seconds,
            "images_per_second": self.program.images / cost.seconds,
            "loops_of_unknown_length": cost.unknown_loops,
        }


HOW_TO_FIT = (
    "Recompute more (--config.model.decoder.remat=full with fewer saved_activations, also model.vision and "
    "model.causal_former), split the batch (--config.train.accumulation=2), use fewer rows "
    "(--config.data.batch.batch_size), or more chips."
)


def versions() -> dict[str, str]:
    """Return the versions of the packages that determine the numbers."""
    return {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "flax")}


def compile_report(program: Program, topology: Topology, *, mesh: MeshConfig | None = None) -> Report:
    """Compile `program` for `topology`, on `mesh` or the program's default mesh.

    Raises:
      UserError: no TPU compiler, a mesh that does not cover the devices, or a program that does not fit into memory.
    """
    device_mesh = make_mesh(program.mesh if mesh is None else mesh, devices=compile_devices(topology))
    devices = list(device_mesh.devices.flat)
    started = time.monotonic()
    try:
        with jax.set_mesh(device_mesh):
            compiled = program.compile(device_mesh)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(explain_failure(str(error), topology)) from None
    seconds = time.monotonic() - started
    text = compiled.as_text() or ""
    network = Network(
        topology,
        np.asarray([device.coords for device in devices]),
        np.asarray([getattr(device, "slice_index", 0) for device in devices]),
    )
    chip = topology.chip
    return Report(
        program=program,
        topology=topology,
        mesh=dict(device_mesh.shape),
        compile_seconds=seconds,
        memory=measure(compiled, limit=chip.memory),
        temporaries=largest_temporaries(text),
        cost=estimate(text, generation=topology.generation, chip=chip, network=network),
        text=text,
    )


def explain_failure(message: str, topology: Topology) -> str:
    """Return one line for a compiler error: the required memory, or the first part of the message."""
    sizes = re.search(r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT]) hbm", message) or re.search(
        r"memory required[^(]*\(([\d.]+[KMGT])\) exceeds available HBM \(([\d.]+[KMGT])\)", message
    )
    if sizes:
        required, available = sizes.groups()
        return (
            f"The program does not fit on {topology}: it requires {required} of {available} per {topology.chip.unit}. "
            + HOW_TO_FIT
        )
    return f"The compiler failed for {topology}: {' '.join(message.split())[:300]}"


def format_report(report: Report) -> str:
    """Return the text that the command prints."""
    program, cost, memory, topology = report.program, report.cost, report.memory, report.topology
    unit = topology.chip.unit
    mesh = " ".join(f"{axis}:{size}" for axis, size in report.mesh.items())
    free = memory.limit - memory.total
    lines = [
        f"{program.name} on {topology} ({topology.chips} chips, mesh {mesh})",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
        f"compiled in {report.compile_seconds:.0f} s",
        "",
        f"memory per {unit}: {_gib(memory.total)} of {_gib(memory.limit)}: "
        + (f"fits, {_gib(free)} free" if memory.fits else f"DOES NOT FIT, {_gib(-free)} too much"),
        f"  arguments {_gib(memory.arguments)}, outputs without donated {_gib(memory.outputs)}, temporaries "
        f"{_gib(memory.temporaries)}, code {_gib(memory.code)}; peak without code {_gib(memory.peak)}",
        *(
            [f"  (the parts add up to {_gib(memory.allocated)}: this libtpu counts reused temporaries more than once)"]
            if memory.allocated > memory.limit
            else []
        ),
        "  largest temporaries:",
        *(
            f"  {_gib(temporary.bytes):>10}  {temporary.shape:<28} {temporary.source}"
            for temporary in report.temporaries
        ),
        "",
        "collectives per step      runs      bytes minimum time",
        *(
            f"  {use.kind:<18} {use.count:>8.0f} {_gib(use.bytes):>11} {1e3 * use.seconds:>8.1f} ms  "
            f"{'in a loop' if use.in_loop else 'outside of loops'}, {'overlapped' if use.overlapped else 'exposed'}"
            for use in cost.collectives
        ),
        f"  exposed in total: {1e3 * cost.exposed_seconds:.1f} ms",
    ]
    if cost.between_slices:
        lines.append(f"  between slices: {_gib(cost.between_slices)} per {unit}; its time is not in the estimate")
    if cost.unknown_loops:
        lines.append(f"  loops of unknown length, counted as one iteration: {', '.join(cost.unknown_loops)}")
    lines += ["", f"operations per step: hardware {cost.flops * topology.devices:.3e}"]
    if program.flops is not None:
        lines[-1] += f", useful {program.flops:.3e}"
    lines.append(f"estimated time: {cost.seconds:.3f} s" + ("" if report.mfu is None else f", MFU {report.mfu:.1%}"))
    rates = [
        f"{amount / cost.seconds:,.0f} {name} per second"
        for amount, name in ((program.tokens, "tokens"), (program.images, "images"))
        if amount
    ]
    if program.steps is not None:
        rates.append(f"{program.steps * cost.seconds / 3600:.1f} hours for the config's {program.steps:,} steps")
    return "\n".join([*lines, "  " + ", ".join(rates), "", ESTIMATE_NOTE])


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
