"""A fingerprint depends on every bit of an array, and not on its sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from emu_jax.checkpoints.fingerprint import differing, fingerprints, sum_on_devices
from emu_jax.sharding.mesh import MeshConfig, make_mesh


@settings(deadline=None)
@given(st.integers(0, 8 * 64 * 4 - 1))
def test_every_bit_changes_the_fingerprint(bit):
    numbers = np.random.default_rng(0).standard_normal((8, 8), np.float32)
    content = bytearray(numbers.tobytes())
    content[bit // 8] ^= 1 << bit % 8
    other = np.frombuffer(bytes(content), np.float32).reshape(8, 8)
    saved = fingerprints({"a": {"kernel": jnp.asarray(numbers)}})
    assert differing(fingerprints({"a": {"kernel": jnp.asarray(other)}}), saved) == ["['a']['kernel']"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool_])
def test_fingerprints_do_not_depend_on_the_sharding(dtype):
    x = jnp.asarray(np.random.default_rng(1).integers(-3, 3, (8, 16)), dtype)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor")))
    assert fingerprints({"x": sharded}) == fingerprints({"x": x})
    expected = fingerprints({"x": x})["['x']"][1]
    assert sum_on_devices([sharded, x[:0], sharded]).tolist() == [expected, 0, expected]  # as on accelerators
    assert fingerprints({"x": x})["['x']"][1] != 0


def test_arrays_of_another_dtype_are_not_compared():
    x = jnp.arange(4.0)
    assert differing(fingerprints({"x": x.astype(jnp.bfloat16)}), fingerprints({"x": x})) == []
