"""Parse the text of a compiled program into computations of instructions, in the order of execution."""

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
    """Dtype, dimensions and memory space of an array. Space 0 is HBM, 1 is vector memory, 5 is host memory."""

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
        """Return the (first) computation that `role=%...` names, for a role such as `calls`, `body` or `to_apply`."""
        match = re.search(rf"\b{role}=\{{?%?([\w.\-<>]+)", self.attributes)
        return match.group(1) if match else None

    def hbm_bytes(self) -> float:
        """Return the bytes of the result that are in HBM."""
        return sum(shape.bytes for shape in self.shapes if shape.space == 0)

    @functools.cached_property
    def op_name(self) -> str:
        """Path of transformations and modules, such as "jit(step)/while/body/decoder/blocks/mlp/dot_general"."""
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
        """Parameter number -> instruction."""
        return {int(i.arguments): i for i in self if i.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name -> instructions that use it as an operand."""
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
        self._frames = _parse_frames(text)
        current: Computation | None = None
        pending: list[str] = []

        def flush() -> None:
            if current is not None and pending:
                instruction = _parse_instruction("\n".join(pending))
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
            elif line == "}" or line.startswith("}, "):  # the text of a kernel may also start a line with a bracket
                flush()
                current = None
            elif current is not None and _INSTRUCTION.match(line):
                flush()
                pending.append(line)
            elif pending:
                pending.append(line)

    def called(self, instruction: Instruction, role: str) -> Computation | None:
        """Return the computation that `instruction` calls in `role`."""
        name = instruction.called(role)
        return self.computations.get(name) if name else None

    def source(self, instruction: Instruction) -> str:
        """Return the Python line of `instruction`, the innermost one in this package if any; else its `op_name`."""
        file = re.search(r'source_file="([^"]*)"', instruction.attributes)
        line = re.search(r"source_line=(\d+)", instruction.attributes)
        frame = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        lines = self._callers(int(frame.group(1))) if frame else []
        if file and line:
            lines = [f"{file.group(1)}:{line.group(1)}"]
        ours = (line[line.rindex("emu_jax/") :] for line in lines if "emu_jax/" in line)
        return next(ours, lines[0] if lines else instruction.op_name)

    def _callers(self, frame: int) -> list[str]:
        """Return the source lines from `frame` outwards."""
        lines = []
        while frame in self._frames:
            line, parent = self._frames[frame]
            lines.append(line)
            if parent == frame:
                break
            frame = parent
        return lines


def _parse_frames(text: str) -> dict[int, tuple[str, int]]:
    """Parse the tables that newer compilers write before a program: frame -> (file and line, calling frame)."""

    def table(name: str, row: str) -> dict[int, tuple[str, ...]]:
        block = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        rows = re.findall(rf"^(\d+) {row}", block.group(1), re.MULTILINE) if block else []
        return {int(number): tuple(found) for number, *found in rows}

    files = table("FileNames", r'"([^"]*)"')
    locations = table("FileLocations", r"\{file_name_id=(\d+) .*?line=(\d+)")
    frames = table("StackFrames", r"\{file_location_id=(\d+)(?: parent_frame_id=(\d+))?")
    lines = {number: f"{files[int(file)][0]}:{line}" for number, (file, line) in locations.items()}
    # Frames are numbered from one, and parents are written plus one.
    return {number: (lines[int(location)], int(parent or 1) - 1) for number, (location, parent) in frames.items()}


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Parse shapes: `"(bf16[8,128]{1,0:T(8,128)S(1)}, s32[])"` has two."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size) for size in dims.split(",") if size)
        found.append(Shape(dtype, sizes, int(space.group(1)) if space else 0))
    return tuple(found)


def _parse_instruction(text: str) -> Instruction:
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
        shapes=parse_shapes(shapes),
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments.strip(),
        attributes=rest[closing:],
        is_root=bool(head.group(1)),
    )


def _closing(text: str, opening: int) -> int:
    """Return the index after the bracket that closes the one at `opening`."""
    depth, quoted = 0, False
    for i in range(opening, len(text)):
        letter = text[i]
        if letter == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif not quoted and letter in "([{":
            depth += 1
        elif not quoted and letter in ")]}":
            depth -= 1
            if depth == 0:
                return i + 1
    raise ValueError(f"unbalanced bracket: {text[opening : opening + 80]}")
