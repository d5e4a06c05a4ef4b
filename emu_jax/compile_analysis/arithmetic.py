"""Cost of one instruction of a compiled program: operations of its matmuls, and bytes to and from HBM."""

import math
import re

from emu_jax.compile_analysis.hlo import Computation, Instruction, Module, Shape

_SLICES = ("dynamic-slice", "slice", "gather")


def matrix_flops(module: Module, instruction: Instruction, computation: Computation) -> float:
    """Return the operations of the matmuls in `instruction`, including those inside a fusion. A multiply-add is two."""
    if instruction.opcode == "dot":
        return _dot_flops(instruction, computation)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, computation)
    inner = module.called(instruction, "calls")
    return sum(matrix_flops(module, i, inner) for i in inner) if inner is not None else 0.0


def _operand_shapes(instruction: Instruction, computation: Computation) -> list[Shape]:
    found = (computation.get(name) for name in instruction.operands)
    return [operand.shapes[0] for operand in found if operand is not None and operand.shapes]


def _dot_flops(instruction: Instruction, computation: Computation) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    left = _operand_shapes(instruction, computation)[0]
    dims = [int(d) for d in contracted.group(1).split(",") if d] if contracted else []
    return 2.0 * math.prod(instruction.shapes[0].dims) * math.prod(left.dims[d] for d in dims)


def _convolution_flops(instruction: Instruction, computation: Computation) -> float:
    """Count a convolution. XLA:TPU writes batched matmuls as convolutions whose windows are mostly padding."""
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", instruction.attributes)
    assert labels is not None
    left_names, kernel_names, out_names = labels.groups()
    left, kernel = (shape.dims for shape in _operand_shapes(instruction, computation)[:2])
    out = instruction.shapes[0].dims
    flops = 2.0 * math.prod(out) * kernel[kernel_names.index("i")]
    window = _window(instruction, count=len(left_names) - 2)
    for i, (stride, before, left_step, kernel_step) in enumerate(window):
        size_in, size_kernel = left[left_names.index(str(i))], kernel[kernel_names.index(str(i))]
        size_out = out[out_names.index(str(i))]
        flops *= _valid_pairs(size_in, size_kernel, size_out, stride, before, left_step, kernel_step) / size_out
    return flops


def _window(instruction: Instruction, *, count: int) -> list[tuple[int, int, int, int]]:
    """Return (stride, padding before, dilation of the input, dilation of the kernel) of each spatial dimension."""
    match = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    given = dict(field.split("=", 1) for field in match.group(1).split()) if match else {}

    def values(key: str, default: str) -> list[str]:
        return given[key].split("x") if key in given else [default] * count

    pads = [int(pad.split("_")[0]) for pad in values("pad", "0_0")]
    strides, inputs, kernels = ([int(v) for v in values(key, "1")] for key in ("stride", "lhs_dilate", "rhs_dilate"))
    return list(zip(strides, pads, inputs, kernels, strict=True))


def _valid_pairs(
    size_in: int, size_kernel: int, size_out: int, stride: int, before: int, left_step: int, kernel_step: int
) -> int:
    """Return the number of (output, kernel) positions that read an input element instead of padding."""
    extent, valid = (size_in - 1) * left_step + 1, 0
    for tap in range(size_kernel):
        start = tap * kernel_step - before
        if stride == left_step == 1:
            valid += max(0, min(size_out, extent - start) - max(0, -start))
        else:
            positions = (start + out * stride for out in range(size_out))
            valid += sum(0 <= position < extent and position % left_step == 0 for position in positions)
    return valid


def hbm_traffic(module: Module, instruction: Instruction, computation: Computation) -> float:
    """Return the bytes that `instruction` reads from and writes to HBM. A sliced operand counts with its slice."""
    inner = module.called(instruction, "calls") if instruction.opcode == "fusion" else None
    if instruction.opcode == "dynamic-update-slice":
        update = computation.get(instruction.operands[1])
        return 2 * update.hbm_bytes() if update is not None else 0.0
    if instruction.opcode in _SLICES:
        return 2 * instruction.hbm_bytes()
    total = 0.0
    for number, name in enumerate(instruction.operands):
        operand = computation.get(name)
        if operand is None or operand.opcode == "constant":
            continue
        size = operand.hbm_bytes()
        if inner is not None and size:
            size = min(size, _bytes_read(module, inner, number))
        total += size
    written = instruction.hbm_bytes()
    if inner is not None and inner.root is not None and written:
        written = min(written, _bytes_written(module, inner, inner.root))
    return total + written


def _bytes_read(module: Module, fusion: Computation, number: int) -> float:
    """Return the bytes that a fusion reads of its parameter `number`."""
    parameter = fusion.parameters.get(number)
    if parameter is None:
        return 0.0
    size = sum(shape.bytes for shape in parameter.shapes)
    return min(size, _bytes_read_by_users(module, fusion, parameter, size))


def _bytes_read_by_users(module: Module, fusion: Computation, array: Instruction, size: float) -> float:
    total = 0.0
    for user in fusion.users.get(array.name, []):
        first = user.operands[0] == array.name
        if user.opcode in _SLICES and first:
            total += sum(shape.bytes for shape in user.shapes)
        elif user.opcode == "dynamic-update-slice" and first and user.operands.count(array.name) == 1:
            continue  # updated in place
        elif user.opcode == "bitcast":
            total += _bytes_read_by_users(module, fusion, user, size)
        elif user.opcode == "fusion" and (inner := module.called(user, "calls")) is not None:
            total += sum(_bytes_read(module, inner, i) for i, name in enumerate(user.operands) if name == array.name)
        else:
            return size
    return total


def _bytes_written(module: Module, fusion: Computation, root: Instruction) -> float:
    """Return the bytes that a fusion writes. An in-place update writes only the update."""
    inner = module.called(root, "calls") if root.opcode == "fusion" else None
    if inner is not None and inner.root is not None:
        return _bytes_written(module, inner, inner.root)
    if root.opcode == "dynamic-update-slice":
        update = fusion.get(root.operands[1])
        if update is not None:
            return sum(shape.bytes for shape in update.shapes)
    if root.opcode == "bitcast" and (source := fusion.get(root.operands[0])) is not None:
        return _bytes_written(module, fusion, source)
    if root.opcode == "tuple":
        parts = (fusion.get(name) for name in root.operands)
        return sum(_bytes_written(module, fusion, part) for part in parts if part is not None)
    return sum(shape.bytes for shape in root.shapes)
