"""A scanned stack equals its layers applied in order."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from emu_jax.layers.linear import DenseGeneral
from emu_jax.layers.saved import UP
from emu_jax.layers.stack import MAX_UNROLLED, Remat, stack
from emu_jax.sharding import axes


class Layer(nn.Module):
    """Add a linear map of x and the broadcast offset; return the per-layer input plus one."""

    @nn.compact
    def __call__(self, x, per_layer, offset):
        mapped = DenseGeneral((x.shape[-1],), (axes.EMBED_IN,), (axes.EMBED,), name="map")(x)
        x = x + jnp.tanh(checkpoint_name(mapped, UP)) + offset
        return x, None if per_layer is None else per_layer + 1


class Stack(nn.Module):
    remat: Remat = Remat.NONE
    saved_activations: tuple[str, ...] = ()
    cached: bool = False

    @nn.compact
    def __call__(self, x, per_layer, offset):
        return stack(Layer, length=3, remat=self.remat, saved_activations=self.saved_activations, cached=self.cached)(
            x, per_layer, offset
        )


X = jax.random.normal(jax.random.key(0), (2, 8))


def params():
    return Stack().init(jax.random.key(1), X, None, 0.5)["params"]


def test_parameters_are_stacked_on_a_named_axis_and_differ():
    kernel = params()["layers"]["map"]["kernel"]
    assert kernel.names == (axes.LAYERS, axes.EMBED_IN, axes.EMBED)
    assert kernel.value.shape == (3, 8, 8)
    assert not np.allclose(kernel.value[0], kernel.value[1])


def test_layers_run_in_order():
    kernels = params()["layers"]["map"]["kernel"].value
    expected = X
    for kernel in kernels:
        expected = expected + jnp.tanh(expected @ kernel) + 0.5
    out, _ = Stack().apply({"params": params()}, X, None, 0.5)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "remat", "loops"), [(3, Remat.NONE, 0), (3, Remat.FULL, 1), (MAX_UNROLLED + 1, Remat.NONE, 1)]
)
def test_a_short_stack_is_not_a_loop_on_a_cpu(length, remat, loops):
    class Long(nn.Module):
        @nn.compact
        def __call__(self, x):
            return stack(Layer, length=length, remat=remat)(x, None, 0.5)[0]

    apply = jax.jit(Long().apply).lower(jax.eval_shape(Long().init, jax.random.key(0), X), X)
    assert apply.compile().as_text().count(" while(") == loops


def test_each_layer_gets_its_slice_of_the_per_layer_input():
    _, per_layer = Stack(cached=True).apply({"params": params()}, X, jnp.asarray([10.0, 20.0, 30.0]), 0.0)
    assert np.asarray(per_layer).tolist() == [11, 21, 31]


def loss(p, remat, saved_activations=()):
    return jnp.sum(Stack(remat=remat, saved_activations=saved_activations).apply({"params": p}, X, None, 0.5)[0] ** 2)


@pytest.mark.parametrize(("remat", "names"), [(Remat.DOTS, ()), (Remat.FULL, ()), (Remat.FULL, (UP,))])
def test_rematerialization_does_not_change_gradients(remat, names):
    gradients = jax.grad(loss)(params(), remat, names), jax.grad(loss)(params(), Remat.NONE)
    actual, expected = (np.asarray(tree["layers"]["map"]["kernel"].value) for tree in gradients)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("names", "matmuls"), [((), 4), ((UP,), 3)])
def test_saved_activations_are_not_recomputed(names, matmuls):
    """One matmul in the forward pass, two for the gradients, and one more where the forward pass is recomputed."""
    program = str(jax.make_jaxpr(jax.grad(loss), static_argnums=(1, 2))(params(), Remat.FULL, names))
    assert program.count("dot_general[") == matmuls
