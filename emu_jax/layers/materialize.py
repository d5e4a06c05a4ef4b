"""What a TPU's compiler is kept from fusing into a matrix product.

An activation or a norm that is fused into the product that makes or reads it is worked out in step with the matrix
unit, and where its gradient is, the product runs at half of its speed. Written to memory once it costs one reading more
(experiments/records/compile_v5p.md). On other devices nothing is held apart.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from emu_jax.layers.fused_attention import on_tpu

_apart = jax.lax.optimization_barrier


def materialize(x: jax.Array) -> jax.Array:
    """`x`, in memory before anything reads it. Its gradient may be fused into what makes it."""
    return _materialize(x) if on_tpu() else x


def materialize_gradient(x: jax.Array) -> jax.Array:
    """`x`, whose gradient is in memory before anything reads that."""
    return _gradient_materialize(x) if on_tpu() else x


def activation_matmul(activation: Callable[..., jax.Array], inputs: tuple[jax.Array, ...], kernel: jax.Array) -> Any:
    """`activation(*inputs) @ kernel`, the inputs `[..., width]` and the kernel `[width, out]`.

    The backward pass finds `inputs` kept or made again; in one reading of them it makes the activation, which the
    kernel's gradient wants, and the gradients by the inputs.
    """
    if on_tpu():
        return _activated_product(activation, inputs, kernel)
    return activation(*inputs) @ kernel


@jax.custom_vjp
def _materialize(x: jax.Array) -> jax.Array:
    return _apart(x)


_materialize.defvjp(lambda x: (_apart(x), None), lambda _, gradient: (gradient,))


@jax.custom_vjp
def _gradient_materialize(x: jax.Array) -> jax.Array:
    return x


_gradient_materialize.defvjp(lambda x: (x, None), lambda _, gradient: (_apart(gradient),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _activated_product(
    activation: Callable[..., jax.Array], inputs: tuple[jax.Array, ...], kernel: jax.Array
) -> jax.Array:
    return _apart(activation(*_apart(inputs))) @ kernel


def _forward(
    activation: Callable[..., jax.Array], inputs: tuple[jax.Array, ...], kernel: jax.Array
) -> tuple[jax.Array, Any]:
    return _activated_product(activation, inputs, kernel), (inputs, kernel)


def _backward(activation: Callable[..., jax.Array], found: Any, gradient: jax.Array) -> tuple[Any, jax.Array]:
    inputs, kernel = found
    by_hidden = _apart(gradient @ kernel.T)
    hidden, pull = jax.vjp(activation, *inputs)
    hidden, by_inputs = _apart((hidden, pull(by_hidden)))
    rows = tuple(range(hidden.ndim - 1))
    return by_inputs, jax.lax.dot_general(hidden, gradient, ((rows, rows), ((), ())))


_activated_product.defvjp(_forward, _backward)
