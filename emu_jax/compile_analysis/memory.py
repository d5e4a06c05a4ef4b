"""Memory of a compiled program per chip, and the source lines of its largest temporaries."""

import dataclasses
import re
from typing import Any

import jax

from emu_jax.compile_analysis.hlo import Computation, Instruction, Module

_NO_BUFFER = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "opt-barrier",
    "after-all", "add-dependency", "dynamic-update-slice", "copy-start", "slice-start",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Temporary:
    """A temporary array: its bytes, its shape in XLA's notation, and the source line that computes it."""

    bytes: float
    shape: str
    source: str


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip.

    Attributes:
      arguments: inputs of the program.
      outputs: results, except those that reuse the memory of donated arguments.
      temporaries: all temporaries. Some versions of libtpu (0.0.50) add up temporaries that reuse the same memory.
      code: the program.
      peak: arguments, outputs and temporaries that exist at the same time, at most.
      limit: memory of the chip.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int
    peak: int
    limit: float

    @property
    def total(self) -> int:
        """Memory that the program needs. The compiler refuses programs above the limit, so this is below it."""
        return min(self.peak + self.code, self.allocated)

    @property
    def allocated(self) -> int:
        """Sum of the reported parts; more than `total` if the compiler counts reused memory more than once."""
        return self.arguments + self.outputs + self.temporaries + self.code

    @property
    def fits(self) -> bool:
        return self.total <= self.limit


def measure(compiled: jax.stages.Compiled, *, limit: float) -> Memory:
    """Return the memory that the compiler reports."""
    found: Any = compiled.memory_analysis()
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(
        arguments=found.argument_size_in_bytes,
        outputs=outputs,
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
        peak=found.peak_memory_in_bytes or found.argument_size_in_bytes + outputs + found.temp_size_in_bytes,
        limit=limit,
    )


def largest_temporaries(text: str, *, count: int = 10) -> list[Temporary]:
    """Return the largest arrays in HBM that `text` (`compiled.as_text()`) computes, once per shape and line."""
    module = Module(text)
    found: dict[tuple[str, str], Temporary] = {}
    for computation in _scheduled(module):
        for instruction in computation:
            if instruction.opcode in _NO_BUFFER or instruction.opcode.endswith("-done"):
                continue
            for shape in instruction.shapes:
                if shape.space == 0:
                    notation = f"{shape.dtype}[{','.join(map(str, shape.dims))}]"
                    temporary = Temporary(shape.bytes, notation, module.source(instruction) or instruction.opcode)
                    found.setdefault((notation, temporary.source), temporary)
    return sorted(found.values(), key=lambda temporary: -temporary.bytes)[:count]


def _scheduled(module: Module) -> list[Computation]:
    """Return the computations whose instructions have buffers: the entry, and bodies of loops and branches."""
    found, remaining = {}, [module.entry]
    while remaining:
        computation = remaining.pop()
        if computation.name in found:
            continue
        found[computation.name] = computation
        for instruction in computation:
            names = re.findall(
                r"(?:body|true_computation|false_computation|to_apply)=%?([\w.\-<>]+)", _calls(instruction)
            )
            branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            names += re.findall(r"[\w.\-<>]+", branches.group(1)) if branches else []
            remaining += [module.computations[name] for name in names if name in module.computations]
    return list(found.values())


def _calls(instruction: Instruction) -> str:
    return instruction.attributes if instruction.opcode in ("while", "conditional", "call") else ""
