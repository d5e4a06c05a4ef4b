"""Kernels in eight bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emu_jax.layers.int8 import Int8Kernel, KernelDims, kernel_dims, quantize_kernels
from emu_jax.layers.linear import DenseGeneral, OutputProjection, QKVProjection
from emu_jax.sharding.specs import unbox

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("layer", "inputs", "dims"),
    [
        (DenseGeneral((6, 4), ("embed",), ("heads", "kv")), (8,), KernelDims(1, 2)),
        (QKVProjection((3, 2, 4), ("embed",), (None, "heads", "kv")), (8,), KernelDims(1, 3)),
        (OutputProjection((8,), ("heads", "kv"), ("embed",)), (2, 4), KernelDims(2, 1)),
    ],
)
def test_a_layer_reads_its_kernel_with_half_a_step_of_error(layer, inputs, dims) -> None:
    x = jnp.asarray(RNG.normal(size=(5, *inputs)), jnp.float32)
    params = unbox(layer.init(jax.random.key(1), x)["params"])
    init = lambda: layer.init(jax.random.key(1), x)
    jax.eval_shape(init)  # an earlier trace of the same function
    found = kernel_dims(init)
    assert found == {("kernel",): dims}
    quantized = quantize_kernels(params, found)["kernel"]
    assert isinstance(quantized, Int8Kernel)
    assert quantized.values.dtype == jnp.int8
    axes = tuple(range(dims.inputs))
    assert quantized.scale.shape == (*(1,) * dims.inputs, *params["kernel"].shape[dims.inputs :])
    np.testing.assert_allclose(quantized.scale, np.abs(params["kernel"]).max(axes, keepdims=True) / 127, rtol=1e-6)
    error = np.abs(quantized.unbox() - params["kernel"])
    assert np.all(error <= quantized.scale * 0.5001)
    expected = layer.apply({"params": {"kernel": quantized.unbox()}}, x)
    got = layer.apply({"params": {"kernel": quantized}}, x)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), got, expected)


def test_a_channel_of_zeros_stays_zero() -> None:
    quantized = quantize_kernels({"kernel": jnp.zeros((4, 2))}, {("kernel",): KernelDims(1, 1)})["kernel"]
    np.testing.assert_array_equal(quantized.unbox(), np.zeros((4, 2)))


def test_a_stack_of_layers_has_a_scale_per_layer() -> None:
    kernel = jnp.stack([jnp.ones((4, 2)), 100 * jnp.ones((4, 2))])
    quantized = quantize_kernels({"kernel": kernel}, {("kernel",): KernelDims(1, 1)})["kernel"]
    np.testing.assert_allclose(quantized.scale[:, 0, 0] * 127, [1, 100], rtol=1e-6)


def test_shardings_and_abstract_arrays() -> None:
    mesh = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tensor"))
    sharding = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    dims = {("kernel",): KernelDims(1, 1)}
    real = quantize_kernels({"kernel": jax.device_put(jnp.ones((4, 2)), sharding)}, dims)["kernel"]
    struct = jax.ShapeDtypeStruct((4, 2), jnp.float32, sharding=sharding)
    abstract = quantize_kernels({"kernel": struct}, dims)["kernel"]
    for one in (real, abstract):
        assert one.values.sharding.is_equivalent_to(sharding, 2)
        assert one.scale.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(None, "tensor")), 2)
    assert abstract.values.dtype == jnp.int8
