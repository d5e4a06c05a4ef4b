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
        """The computation that `role=%...` names, the first of several: `calls`, `body`, `condition`, `to_apply`."""
        match = re.search(rf"\b{role}=\{{?%?([\w.\-<>]+)", self.attributes)
        return match.group(1) if match else None

    def hbm_bytes(self) -> float:
        """Of the result, as far as it lies in HBM."""
        return sum(shape.bytes for shape in self.shapes if shape.space == 0)

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
        self._frames = _read_frames(text)
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
            elif line == "}" or line.startswith("}, "):  # a kernel's own text may begin a line with a bracket, too
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

    def source(self, instruction: Instruction) -> str:
        """The line of Python that `instruction` comes from, in this package if any caller is; else its `op_name`."""
        file = re.search(r'source_file="([^"]*)"', instruction.attributes)
        line = re.search(r"source_line=(\d+)", instruction.attributes)
        frame = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        lines = self._callers(int(frame.group(1))) if frame else []
        if file and line:
            lines = [f"{file.group(1)}:{line.group(1)}"]
        ours = (line[line.rindex("emu_jax/") :] for line in lines if "emu_jax/" in line)
        return next(ours, lines[0] if lines else instruction.op_name)

    def _callers(self, frame: int) -> list[str]:
        """From the frame outwards."""
        lines = []
        while frame in self._frames:
            line, parent = self._frames[frame]
            lines.append(line)
            if parent == frame:
                break
            frame = parent
        return lines


def _read_frames(text: str) -> dict[int, tuple[str, int]]:
    """The tables that newer compilers write before a program: frame -> (file and line, the frame that called it)."""

    def table(name: str, row: str) -> dict[int, tuple[str, ...]]:
        block = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        rows = re.findall(rf"^(\d+) {row}", block.group(1), re.MULTILINE) if block else []
        return {int(number): tuple(found) for number, *found in rows}

    files = table("FileNames", r'"([^"]*)"')
    places = table("FileLocations", r"\{file_name_id=(\d+) .*?line=(\d+)")
    frames = table("StackFrames", r"\{file_location_id=(\d+)(?: parent_frame_id=(\d+))?")
    lines = {number: f"{files[int(file)][0]}:{line}" for number, (file, line) in places.items()}
    # Parents are numbered from one and written with one more.
    return {number: (lines[int(place)], int(parent or 1) - 1) for number, (place, parent) in frames.items()}


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
