"""What a compiled program keeps in a chip's memory, and which lines of code its largest temporaries come from."""

import dataclasses
import re
from typing import Any

import jax

from emu_jax.compile_analysis.hlo import Computation, Module

_NO_BUFFER = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "opt-barrier",
    "after-all", "add-dependency", "dynamic-update-slice", "copy-start", "slice-start",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Temporary:
    """An array that a program makes and drops: its shape as XLA writes it, and the line that asked for it."""

    bytes: float
    shape: str
    source: str


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip.

    Attributes:
      arguments: what the program is given.
      outputs: what it returns, less what it writes over its arguments.
      temporaries: at their peak.
      code: the program itself.
      limit: of the chip.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int
    limit: float

    @property
    def total(self) -> int:
        return self.arguments + self.outputs + self.temporaries + self.code

    @property
    def fits(self) -> bool:
        return self.total <= self.limit


def measure(compiled: jax.stages.Compiled, *, limit: float) -> Memory:
    """The compiler's own accounts."""
    found: Any = compiled.memory_analysis()
    return Memory(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes - found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
        limit=limit,
    )


def largest_temporaries(text: str, *, count: int = 10) -> list[Temporary]:
    """The largest arrays in HBM that `text` (`compiled.as_text()`) computes, each shape of a line once."""
    module = Module(text)
    found: dict[tuple[str, str], Temporary] = {}
    for computation in _scheduled(module):
        for instruction in computation:
            if instruction.opcode in _NO_BUFFER or instruction.opcode.endswith("-done"):
                continue
            for shape in instruction.shapes:
                if shape.space == 0:
                    written = f"{shape.dtype}[{','.join(map(str, shape.dims))}]"
                    one = Temporary(shape.bytes, written, module.source(instruction) or instruction.opcode)
                    found.setdefault((written, one.source), one)
    return sorted(found.values(), key=lambda one: -one.bytes)[:count]


def _scheduled(module: Module) -> list[Computation]:
    """The computations whose instructions have buffers of their own: the entry and what loops and branches run."""
    found, waiting = {}, [module.entry]
    while waiting:
        computation = waiting.pop()
        if computation.name in found:
            continue
        found[computation.name] = computation
        for instruction in computation:
            names = re.findall(
                r"(?:body|true_computation|false_computation|to_apply)=%?([\w.\-<>]+)", _calls(instruction)
            )
            branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            names += re.findall(r"[\w.\-<>]+", branches.group(1)) if branches else []
            waiting += [module.computations[name] for name in names if name in module.computations]
    return list(found.values())


def _calls(instruction) -> str:
    return instruction.attributes if instruction.opcode in ("while", "conditional", "call") else ""
