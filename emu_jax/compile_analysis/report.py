"""What the compiler made of a program, as a page to read and as JSON."""

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
from emu_jax.compile_analysis.programs import Program
from emu_jax.compile_analysis.topologies import Topology, compile_devices
from emu_jax.errors import UserError
from emu_jax.sharding.mesh import MeshConfig, make_mesh

_GIB = 2**30

WHAT_KIND = (
    "An estimate, not a measurement: the compiler's own cycles times the loops' trip counts, and for collectives the "
    "least time that their links allow. It compares variants of a program well; an absolute MFU is good to 5 to 8 "
    "points, and it knows nothing of input stalls, of the network between slices, or of throttling."
)


@dataclasses.dataclass(frozen=True)
class Report:
    """Of one program on one topology.

    Attributes:
      mesh: axis -> size.
      compile_seconds: of tracing, lowering and compiling.
      text: the optimised program.
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
        """Useful operations over what the chips could do in the estimated time."""
        if self.program.flops is None:
            return None
        return self.program.flops / (self.cost.seconds * self.topology.chip.peak * self.topology.devices)

    def to_json(self) -> dict[str, Any]:
        """All numbers; operations are of the whole step on all chips, bytes and seconds of one device."""
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
            "memory": {name: getattr(memory, name) for name in ("arguments", "outputs", "temporaries", "code")},
            "largest_temporaries": [dataclasses.asdict(one) for one in self.temporaries],
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


def versions() -> dict[str, str]:
    """Of what makes the numbers."""
    return {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "flax")}


def compile_report(program: Program, topology: Topology, *, mesh: MeshConfig | None = None) -> Report:
    """Compiles `program` for `topology`.

    Raises:
      UserError: no compiler, a mesh that does not cover the chips, or a program that does not fit into a chip.
    """
    laid_out = make_mesh(program.mesh if mesh is None else mesh, devices=compile_devices(topology))
    devices = list(laid_out.devices.flat)
    started = time.monotonic()
    try:
        with jax.set_mesh(laid_out):
            compiled = program.compile(laid_out)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(why(str(error), topology)) from None
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
        mesh=dict(laid_out.shape),
        compile_seconds=seconds,
        memory=measure(compiled, limit=chip.memory),
        temporaries=largest_temporaries(text),
        cost=estimate(text, generation=topology.generation, chip=chip, network=network),
        text=text,
    )


def why(message: str, topology: Topology) -> str:
    """The compiler's reason in a line: how much it wants, where it runs out of memory."""
    wanted = re.search(r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT]) hbm", message) or re.search(
        r"memory required[^(]*\(([\d.]+[KMGT])\) exceeds available HBM \(([\d.]+[KMGT])\)", message
    )
    if wanted:
        each = topology.chip.device
        return (
            f"The program wants {wanted.group(1)} of a {each}'s {wanted.group(2)} on {topology} and does not fit; keep "
            "less for the backward pass (model.decoder.saved_activations, model.vision.saved_activations), take fewer rows, "
            "or more chips."
        )
    return f"The compiler gave up for {topology}: {' '.join(message.split())[:300]}"


def page(report: Report) -> str:
    """What the command prints."""
    program, cost, memory, topology = report.program, report.cost, report.memory, report.topology
    each = topology.chip.device
    mesh = " ".join(f"{axis}:{size}" for axis, size in report.mesh.items())
    spare = memory.limit - memory.total
    lines = [
        f"{program.name} on {topology} ({topology.chips} chips, mesh {mesh})",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
        f"compiled in {report.compile_seconds:.0f} s",
        "",
        f"memory a {each}: {_gib(memory.total)} of {_gib(memory.limit)}: "
        + (f"fits, {_gib(spare)} to spare" if memory.fits else f"DOES NOT FIT, {_gib(-spare)} too much"),
        f"  arguments {_gib(memory.arguments)}, outputs less aliases {_gib(memory.outputs)}, temporaries "
        f"{_gib(memory.temporaries)}, code {_gib(memory.code)}",
        "  the largest temporaries:",
        *(f"  {_gib(one.bytes):>10}  {one.shape:<28} {one.source}" for one in report.temporaries),
        "",
        "collectives of a step     runs      bytes   least time",
        *(
            f"  {use.kind:<18} {use.count:>8.0f} {_gib(use.bytes):>11} {1e3 * use.seconds:>8.1f} ms  "
            f"{'in a loop' if use.in_loop else 'outside of loops'}, "
            f"{'in the background' if use.overlapped else 'waited for'}"
            for use in cost.collectives
        ),
        f"  waited for in all: {1e3 * cost.exposed_seconds:.1f} ms",
    ]
    if cost.between_slices:
        lines.append(f"  between slices: {_gib(cost.between_slices)} a {each}, whose time is not in the estimate")
    if cost.unknown_loops:
        lines.append(f"  loops of unknown length, counted once: {', '.join(cost.unknown_loops)}")
    lines += ["", f"operations of the whole step: hardware {cost.flops * topology.devices:.3e}"]
    if program.flops is not None:
        lines[-1] += f", useful {program.flops:.3e}"
    lines.append(f"estimated time: {cost.seconds:.3f} s" + ("" if report.mfu is None else f", MFU {report.mfu:.1%}"))
    rates = [
        f"{amount / cost.seconds:,.0f} {what} a second"
        for amount, what in ((program.tokens, "tokens"), (program.images, "images"))
        if amount
    ]
    if program.steps is not None:
        rates.append(f"{program.steps * cost.seconds / 3600:.1f} hours for the config's {program.steps:,} steps")
    return "\n".join([*lines, "  " + ", ".join(rates), "", WHAT_KIND])


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB"
