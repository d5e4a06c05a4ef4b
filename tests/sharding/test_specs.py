"""Logical axis names, and the shardings of arrays that carry them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from emu_jax.sharding import axes
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.sharding.rules import DEFAULT_RULES
from emu_jax.sharding.specs import logical_constraint, shardings, unbox


def test_every_axis_has_one_name_and_one_rule() -> None:
    names = {value for key, value in vars(axes).items() if key.isupper() and isinstance(value, str)}
    listed = axes.PARAMETER_AXES + axes.ACTIVATION_AXES
    assert len(listed) == len(set(listed))
    assert set(listed) == names
    assert sorted(name for name, _ in DEFAULT_RULES) == sorted(listed)


def test_parameters_are_sharded_by_their_axes_or_along_another_dimension_that_divides() -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))

    def boxed(shape: tuple[int, ...], *names: str) -> nn.LogicallyPartitioned:
        return nn.LogicallyPartitioned(jnp.zeros(shape), names)

    tree = {
        "kernel": boxed((8, 6), axes.EMBED, axes.MLP),
        "three_heads": boxed((8, 3, 4), axes.EMBED, axes.HEADS, axes.KV),
        "narrow": boxed((6, 8), axes.EMBED, axes.MLP),
        "stacked": boxed((4, 6, 7), axes.LAYERS, axes.EMBED, axes.MLP),
        "scale": boxed((8,), axes.NORM),
        "full_tiles": boxed((12, 64), axes.EMBED, axes.MLP),
    }
    sharded = jax.device_put(unbox(tree), shardings(tree, mesh))
    assert sharded["kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
    assert sharded["kernel"].addressable_shards[0].data.shape == (2, 3)
    assert sharded["three_heads"].sharding.spec == PartitionSpec("fsdp", None, "tensor")
    assert sharded["narrow"].sharding.spec == PartitionSpec(None, ("tensor", "fsdp"))
    # 2 divides 6 and 4 does not; the scanned layers axis is never sharded.
    assert sharded["stacked"].sharding.spec == PartitionSpec(None, "tensor", None)
    # 4 devices would get 3 of 12 rows each, but full tiles of 8 rows of the 64 that tensor parallelism splits.
    assert sharded["full_tiles"].sharding.spec == PartitionSpec(None, ("tensor", "fsdp"))
    assert sharded["scale"].is_fully_replicated


def test_constraint_reaches_the_compiled_program() -> None:
    """`with mesh:` would drop the constraint silently; under `jax.set_mesh` the output is sharded."""
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        out = jax.jit(lambda x: logical_constraint(x, (axes.ACT_BATCH, axes.ACT_MLP)))(jnp.zeros((8, 6)))
    assert out.addressable_shards[0].data.shape == (2, 3)


def test_misspelled_axis_is_an_error() -> None:
    with jax.set_mesh(make_mesh(MeshConfig())), pytest.raises(ValueError, match="act_bacth"):
        jax.jit(lambda x: logical_constraint(x, ("act_bacth", axes.ACT_EMBED)))(jnp.zeros((8, 8)))


def test_constraint_without_a_mesh_returns_its_input() -> None:
    x = jnp.ones((3, 5))
    assert logical_constraint(x, (axes.ACT_BATCH, axes.ACT_EMBED)) is x
