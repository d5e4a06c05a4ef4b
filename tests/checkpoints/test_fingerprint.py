"""Any bit counts, and where an array lies does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from emu_jax.checkpoints.fingerprint import _sum_on_devices, differing, fingerprints
from emu_jax.sharding.mesh import MeshConfig, make_mesh


@given(st.integers(0, 8 * 64 * 4 - 1))
def test_every_bit_counts(bit):
    numbers = np.random.default_rng(0).standard_normal((8, 8), np.float32)
    content = bytearray(numbers.tobytes())
    content[bit // 8] ^= 1 << bit % 8
    other = np.frombuffer(bytes(content), np.float32).reshape(8, 8)
    saved = fingerprints({"a": {"kernel": jnp.asarray(numbers)}})
    assert differing(fingerprints({"a": {"kernel": jnp.asarray(other)}}), saved) == ["['a']['kernel']"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool_])
def test_it_is_the_same_on_a_mesh(dtype):
    x = jnp.asarray(np.random.default_rng(1).integers(-3, 3, (8, 16)), dtype)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    cut = jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor")))
    assert fingerprints({"x": cut}) == fingerprints({"x": x})
    assert int(_sum_on_devices(cut)) == fingerprints({"x": x})["['x']"][1]  # as on accelerators
    assert fingerprints({"x": x})["['x']"][1] != 0


def test_another_dtype_cannot_be_told():
    x = jnp.arange(4.0)
    assert differing(fingerprints({"x": x.astype(jnp.bfloat16)}), fingerprints({"x": x})) == []
