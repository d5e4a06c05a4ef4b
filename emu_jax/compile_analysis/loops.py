"""Trip count of a loop of a compiled program, from its condition, initial value and increment."""

import math
import re

from emu_jax.compile_analysis.hlo import Computation, Instruction, Module

_ANNOTATED = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
_UNCHANGED = ("copy", "bitcast", "convert", "reshape", "copy-done")

# Origin of a scalar: a constant, or an element of the tuple that the loop carries.
Origin = int | tuple[str, int] | None


def trip_count(module: Module, loop: Instruction, caller: Computation) -> int | None:
    """Return how often the `while` instruction `loop` of `caller` runs its body; None if it depends on the data."""
    annotated = _ANNOTATED.search(loop.attributes)
    if annotated:
        return int(annotated.group(1))
    condition, body = module.called(loop, "condition"), module.called(loop, "body")
    carried = caller.get(loop.operands[0]) if loop.operands else None
    if condition is None or body is None or condition.root is None or carried is None or carried.opcode != "tuple":
        return None
    compared = _comparison(module, condition, condition.root, {})
    if compared is None:
        return None
    left, right, direction = compared
    if isinstance(left, int):
        left, right, direction = right, left, {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
    if not isinstance(left, tuple):
        return None
    first = _origin(module, caller, carried.operands[left[1]], {})
    limit = right
    if isinstance(right, tuple):
        limit = _origin(module, caller, carried.operands[right[1]], {})
    step = _step(module, body, left[1])
    if not isinstance(first, int) or not isinstance(limit, int) or not step:
        return None
    distance = (limit - first) / step
    count = {"LT": math.ceil(distance), "GT": math.ceil(distance), "NE": math.ceil(distance)}.get(
        direction, math.floor(distance) + 1
    )
    return max(count, 0)


def _origin(module: Module, computation: Computation, name: str, inputs: dict[int, Origin]) -> Origin:
    instruction = computation.get(name)
    if instruction is None:
        return None
    match instruction.opcode:
        case "constant":
            number = re.match(r"-?\d+$", instruction.arguments)
            return int(number.group()) if number else None
        case "parameter":
            return inputs.get(int(instruction.arguments))
        case "get-tuple-element":
            index = re.search(r"index=(\d+)", instruction.attributes)
            source = computation.get(instruction.operands[0])
            if index is None or source is None:
                return None
            if source.opcode == "parameter":
                return ("carried", int(index.group(1)))
            return (
                _origin(module, computation, source.operands[int(index.group(1))], inputs)
                if source.opcode == "tuple"
                else None
            )
        case "fusion":
            inner = module.called(instruction, "calls")
            if inner is None or inner.root is None:
                return None
            return _origin(module, inner, inner.root.name, _arguments(module, computation, instruction, inputs))
        case opcode if opcode in _UNCHANGED:
            return _origin(module, computation, instruction.operands[0], inputs)
    return None


def _arguments(
    module: Module, computation: Computation, call: Instruction, inputs: dict[int, Origin]
) -> dict[int, Origin]:
    return {i: _origin(module, computation, name, inputs) for i, name in enumerate(call.operands)}


def _comparison(
    module: Module, computation: Computation, instruction: Instruction, inputs: dict[int, Origin]
) -> tuple[Origin, Origin, str] | None:
    if instruction.opcode == "compare":
        left, right = (_origin(module, computation, name, inputs) for name in instruction.operands)
        direction = re.search(r"direction=(\w+)", instruction.attributes)
        return (left, right, direction.group(1)) if direction else None
    if instruction.opcode == "fusion":
        inner = module.called(instruction, "calls")
        if inner is None or inner.root is None:
            return None
        return _comparison(module, inner, inner.root, _arguments(module, computation, instruction, inputs))
    if instruction.opcode in _UNCHANGED:
        source = computation.get(instruction.operands[0])
        return None if source is None else _comparison(module, computation, source, inputs)
    return None


def _step(module: Module, body: Computation, index: int) -> int | None:
    """Return the increment per iteration of element `index` of the tuple that the loop carries."""
    if body.root is None or body.root.opcode != "tuple":
        return None
    return _added(module, body, body.root.operands[index], {})


def _added(module: Module, computation: Computation, name: str, inputs: dict[int, Origin]) -> int | None:
    instruction = computation.get(name)
    if instruction is None:
        return None
    if instruction.opcode in ("add", "subtract"):
        sign = 1 if instruction.opcode == "add" else -1
        origins = [_origin(module, computation, operand, inputs) for operand in instruction.operands]
        return next((sign * origin for origin in origins if isinstance(origin, int)), None)
    if instruction.opcode == "fusion":
        inner = module.called(instruction, "calls")
        if inner is None or inner.root is None:
            return None
        return _added(module, inner, inner.root.name, _arguments(module, computation, instruction, inputs))
    if instruction.opcode in _UNCHANGED:
        return _added(module, computation, instruction.operands[0], inputs)
    return None
