"""The text of a compiled program, read: computations of instructions, in the order in which a chip runs them."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BYTES = {
    "pred": 1.0,
    "s4": 0.5,
    "u4": 0.5,
    "s2": 0.25,
    "u2": 0.25,
    "bf16": 2.0,
    "token": 0.0,
    "c64": 8.0,
    "c128": 16.0,
}
_SHAPE = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-<>]+) .*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-<>]+) = ")
_NAME = re.compile(r"%([\w.\-<>]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's type, dimensions, and memory space (0 is HBM, 1 the chip's own vector memory, 5 the host)."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> float:
        bits = re.search(r"\d+", self.dtype)
        width = _BYTES.get(self.dtype, int(bits.group()) / 8 if bits else 0.0)
        return width * math.prod(self.dims)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`name = shapes opcode(operands), attributes`."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool

    def called(self, role: str) -> str | None:
        """The computation that `role=%...` names: `calls`, `body`, `condition`, `to_apply`."""
        match = re.search(rf"\b{role}=%?([\w.\-<>]+)", self.attributes)
        return match.group(1) if match else None

    def hbm_bytes(self) -> float:
        """Of the result, as far as it lies in HBM."""
        return sum(shape.bytes for shape in self.shapes if shape.space == 0)

    @functools.cached_property
    def source(self) -> str:
        """The line of Python that it comes from, and the operation there."""
        file = re.search(r'source_file="([^"]*)"', self.attributes)
        line = re.search(r"source_line=(\d+)", self.attributes)
        return f"{file.group(1)}:{line.group(1)}" if file and line else self.op_name

    @functools.cached_property
    def op_name(self) -> str:
        """The path of transformations and modules, as in "jit(step)/while/body/decoder/blocks/mlp/dot_general"."""
        name = re.search(r'op_name="([^"]*)"', self.attributes)
        return name.group(1) if name else ""


class Computation:
    """Instructions by name, in order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.instructions: dict[str, Instruction] = {}
        self.root: Instruction | None = None

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def get(self, name: str) -> Instruction | None:
        return self.instructions.get(name)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """By number."""
        return {int(i.arguments): i for i in self if i.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name -> the instructions that read it."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self:
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found


class Module:
    """A compiled program."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, Computation] = {}
        self.entry = Computation("")
        current: Computation | None = None
        pending: list[str] = []

        def flush() -> None:
            if current is not None and pending:
                instruction = _read_instruction("\n".join(pending))
                current.instructions[instruction.name] = instruction
                if instruction.is_root:
                    current.root = instruction
            pending.clear()

        for line in text.split("\n"):
            head = None if line[:1].isspace() else _COMPUTATION.match(line)
            if head and not line.startswith("HloModule"):
                current = self.computations[head.group(2)] = Computation(head.group(2))
                if head.group(1):
                    self.entry = current
            elif line.startswith("}"):
                flush()
                current = None
            elif current is not None and _INSTRUCTION.match(line):
                flush()
                pending.append(line)
            elif pending:
                pending.append(line)

    def called(self, instruction: Instruction, role: str) -> Computation | None:
        """The computation that `instruction` calls in `role`."""
        name = instruction.called(role)
        return self.computations.get(name) if name else None


def read_shapes(text: str) -> tuple[Shape, ...]:
    """`"(bf16[8,128]{1,0:T(8,128)S(1)}, s32[])"` -> two shapes."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size) for size in dims.split(",") if size)
        found.append(Shape(dtype, sizes, int(space.group(1)) if space else 0))
    return tuple(found)


def _read_instruction(text: str) -> Instruction:
    head = _INSTRUCTION.match(text)
    assert head is not None
    rest = text[head.end() :]
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shapes, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    arguments = re.sub(r"/\*.*?\*/", "", rest[opening + 1 : closing - 1])
    return Instruction(
        name=head.group(2),
        opcode=rest[:opening].strip(),
        shapes=read_shapes(shapes),
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments.strip(),
        attributes=rest[closing:],
        is_root=bool(head.group(1)),
    )


def _closing(text: str, opening: int) -> int:
    """Just past the bracket that closes the one at `opening`."""
    depth, quoted = 0, False
    for place in range(opening, len(text)):
        letter = text[place]
        if letter == '"' and text[place - 1] != "\\":
            quoted = not quoted
        elif not quoted and letter in "([{":
            depth += 1
        elif not quoted and letter in ")]}":
            depth -= 1
            if depth == 0:
                return place + 1
    raise ValueError(f"a bracket that nothing closes: {text[opening : opening + 80]}")
