"""The matmul of a linear layer, in the form that suits the device."""

import math

import jax

from emu_jax.hardware import on_tpu


def contract(x: jax.Array, kernel: jax.Array, *, dims: int = 1) -> jax.Array:
    """Contract the last `dims` dimensions of `x` with the first ones of `kernel`.

    Other devices than TPUs get a product of two matrices. For arrays of more dimensions, XLA for CPUs transposes an
    activation in memory to compute the gradient of the kernel (experiments/records/training_step.md).
    """
    if on_tpu():
        rows = tuple(range(x.ndim - dims, x.ndim))
        return jax.lax.dot_general(x, kernel, ((rows, tuple(range(dims))), ((), ())))
    width = math.prod(kernel.shape[:dims])
    y = x.reshape(-1, width) @ kernel.reshape(width, -1)
    return y.reshape(*x.shape[: x.ndim - dims], *kernel.shape[dims:])
