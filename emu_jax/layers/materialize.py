"""Keep the TPU compiler from fusing activations and norms into matmuls.

A fused activation or norm is computed in step with the matrix unit. If its gradient is fused as well, the matmul runs
at half its speed. Materialized in memory it costs one additional read (experiments/records/compile_v5p.md). On other
devices these functions change nothing.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from emu_jax.hardware import on_tpu
from emu_jax.layers.contract import contract

_barrier = jax.lax.optimization_barrier


def materialize(x: jax.Array) -> jax.Array:
    """Return `x`, written to memory before it is used. The computation of its gradient may still be fused."""
    return _materialize(x) if on_tpu() else x


def materialize_gradient(x: jax.Array) -> jax.Array:
    """Return `x`. Its gradient is written to memory before it is used."""
    return _materialize_gradient(x) if on_tpu() else x


def activation_matmul(activation: Callable[..., jax.Array], inputs: tuple[jax.Array, ...], kernel: jax.Array) -> Any:
    """Return `activation(*inputs) @ kernel` for inputs `[..., width]` and a kernel `[width, out]`.

    The backward pass reads `inputs` once, saved or recomputed, for both the activation, which the kernel's gradient
    needs, and the gradients of the inputs.
    """
    if on_tpu():
        return _activation_matmul(activation, inputs, kernel)
    return contract(activation(*inputs), kernel)


@jax.custom_vjp
def _materialize(x: jax.Array) -> jax.Array:
    return _barrier(x)


_materialize.defvjp(lambda x: (_barrier(x), None), lambda _, gradient: (gradient,))


@jax.custom_vjp
def _materialize_gradient(x: jax.Array) -> jax.Array:
    return x


_materialize_gradient.defvjp(lambda x: (x, None), lambda _, gradient: (_barrier(gradient),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _activation_matmul(
    activation: Callable[..., jax.Array], inputs: tuple[jax.Array, ...], kernel: jax.Array
) -> jax.Array:
    return _barrier(activation(*_barrier(inputs))) @ kernel


def _forward(
    activation: Callable[..., jax.Array], inputs: tuple[jax.Array, ...], kernel: jax.Array
) -> tuple[jax.Array, Any]:
    return _activation_matmul(activation, inputs, kernel), (inputs, kernel)


def _backward(activation: Callable[..., jax.Array], residuals: Any, gradient: jax.Array) -> tuple[Any, jax.Array]:
    inputs, kernel = residuals
    hidden_gradient = _barrier(gradient @ kernel.T)
    hidden, pullback = jax.vjp(activation, *inputs)
    hidden, input_gradients = _barrier((hidden, pullback(hidden_gradient)))
    rows = tuple(range(hidden.ndim - 1))
    return input_gradients, jax.lax.dot_general(hidden, gradient, ((rows, rows), ((), ())))


_activation_matmul.defvjp(_forward, _backward)
