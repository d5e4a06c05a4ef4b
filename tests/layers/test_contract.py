"""The matmul of linear layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.layers.contract import contract


@pytest.mark.parametrize(
    ("x", "kernel", "dims"), [((4, 7, 6), (6, 5), 1), ((4, 7, 2, 3), (2, 3, 5), 2), ((6,), (6, 2, 5), 1)]
)
def test_values_and_gradients(x, kernel, dims):
    x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate((x, kernel)))
    expected, pullback = jax.vjp(lambda x, kernel: jnp.tensordot(x, kernel, axes=dims), x, kernel)
    actual, our_pullback = jax.vjp(lambda x, kernel: contract(x, kernel, dims=dims), x, kernel)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    for ours, theirs in zip(our_pullback(actual), pullback(actual), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_gradient_of_a_kernel_needs_no_transposed_activation_on_a_cpu():
    def gradient(x, kernel):
        return jax.grad(lambda kernel: jnp.sum(jnp.tanh(contract(jnp.tanh(x), kernel))))(kernel)

    x, kernel = jnp.zeros((16, 128, 64)), jnp.zeros((64, 96))
    program = jax.jit(gradient).lower(x, kernel).compile().as_text()
    assert "f32[2048,96]" in program
    assert "f32[96,2048]" not in program
