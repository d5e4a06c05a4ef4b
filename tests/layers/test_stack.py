"""A scanned stack is its layers one after the other."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from emu_jax.layers.linear import DenseGeneral
from emu_jax.layers.saved import UP
from emu_jax.layers.stack import Remat, stack
from emu_jax.sharding import axes


class Layer(nn.Module):
    """Adds a linear map of x, the shared offset, and hands on what it was given for itself, plus one."""

    @nn.compact
    def __call__(self, x, per_layer, shared):
        mapped = DenseGeneral((x.shape[-1],), (axes.EMBED_IN,), (axes.EMBED,), name="map")(x)
        x = x + jnp.tanh(checkpoint_name(mapped, UP)) + shared
        return x, None if per_layer is None else per_layer + 1


class Stack(nn.Module):
    remat: Remat = Remat.NONE
    saved_activations: tuple[str, ...] = ()
    cached: bool = False

    @nn.compact
    def __call__(self, x, per_layer, shared):
        return stack(Layer, length=3, remat=self.remat, saved_activations=self.saved_activations, cached=self.cached)(
            x, per_layer, shared
        )


X = jax.random.normal(jax.random.key(0), (2, 8))


def params():
    return Stack().init(jax.random.key(1), X, None, 0.5)["params"]


def test_parameters_are_stacked_on_a_named_axis_and_differ():
    kernel = params()["layers"]["map"]["kernel"]
    assert kernel.names == (axes.LAYERS, axes.EMBED_IN, axes.EMBED)
    assert kernel.value.shape == (3, 8, 8)
    assert not np.allclose(kernel.value[0], kernel.value[1])


def test_the_layers_run_in_order():
    kernels = params()["layers"]["map"]["kernel"].value
    expected = X
    for kernel in kernels:
        expected = expected + jnp.tanh(expected @ kernel) + 0.5
    out, _ = Stack().apply({"params": params()}, X, None, 0.5)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_each_layer_has_its_own_slice_of_what_is_cached():
    _, per_layer = Stack(cached=True).apply({"params": params()}, X, jnp.asarray([10.0, 20.0, 30.0]), 0.0)
    assert np.asarray(per_layer).tolist() == [11, 21, 31]


def loss(p, remat, saved_activations=()):
    return jnp.sum(Stack(remat=remat, saved_activations=saved_activations).apply({"params": p}, X, None, 0.5)[0] ** 2)


@pytest.mark.parametrize(("remat", "named"), [(Remat.DOTS, ()), (Remat.FULL, ()), (Remat.FULL, (UP,))])
def test_what_is_recomputed_has_the_same_gradient(remat, named):
    saved_activations, recomputed = (jax.grad(loss)(params(), *kind) for kind in ((Remat.NONE,), (remat, named)))
    saved_activations, recomputed = (
        np.asarray(g["layers"]["map"]["kernel"].value) for g in (saved_activations, recomputed)
    )
    np.testing.assert_allclose(recomputed, saved_activations, rtol=0, atol=1e-5 * np.abs(saved_activations).max())


@pytest.mark.parametrize(("named", "products"), [((), 4), ((UP,), 3)])
def test_what_is_named_is_not_computed_again(named, products):
    """A product forward, two for the gradients, and the one that full rematerialisation does twice."""
    program = str(jax.make_jaxpr(jax.grad(loss), static_argnums=(1, 2))(params(), Remat.FULL, named))
    assert program.count("dot_general[") == products
