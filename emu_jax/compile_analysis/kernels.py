"""Operations and efficiency of the Pallas attention kernels, for which the compiler reports no cycles."""

import math
import re

from emu_jax.compile_analysis.hlo import Computation, Instruction

# Fraction of the peak that splash attention reaches: (forward, backward). Counted in the instruction bundles of the
# compiled kernels, for blocks of 512 and heads of 128. v7x was not counted; its matrix units are as large as v6e's.
EFFICIENCY = {
    "v4": (0.37, 0.64),
    "v5e": (0.53, 0.80),
    "v5p": (0.49, 0.78),
    "v6e": (0.18, 0.29),
    "v7x": (0.18, 0.29),
}


def kernel_flops(kernel: Instruction, computation: Computation) -> tuple[float, bool]:
    """Return (operations, is a backward pass) of an attention kernel; of other kernels, their own cost estimate."""
    reported = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', kernel.attributes)
    if not re.search(r"splash|flash", kernel.name):
        return (float(reported.group(1)) if reported else 0.0), False
    operands = (computation.get(name) for name in kernel.operands)
    arrays = [o.shapes[0].dims for o in operands if o and o.shapes and o.shapes[0].dtype in ("bf16", "f32")]
    query, key = [dims for dims in arrays if len(dims) >= 3][:2]
    backward = "dkv" in kernel.name or "dq" in kernel.name
    # Forward: q k and p v. Backward: q k again, and the gradients of q, k, v and p.
    matmuls = 5 if backward else 2
    blocks = re.search(r'block_q\w*\\?": (\d+)', kernel.attributes)
    count = max(1, query[-2] // int(blocks.group(1))) if blocks else 1
    causal = (count + 1) / (2 * count) if query[-2] == key[-2] else 1.0
    return matmuls * 2.0 * math.prod(query) * key[-2] * causal, backward
