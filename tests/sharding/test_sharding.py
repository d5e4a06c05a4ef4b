"""The vocabulary of axes, the mesh, and what becomes of an array that names its axes."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from emu_jax.errors import UserError
from emu_jax.sharding import axes
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.sharding.rules import DEFAULT_RULES, MESH_AXES
from emu_jax.sharding.specs import logical_constraint, shardings, unbox


def test_every_axis_has_one_name_and_one_rule() -> None:
    names = {value for key, value in vars(axes).items() if key.isupper() and isinstance(value, str)}
    listed = axes.PARAMETER_AXES + axes.ACTIVATION_AXES
    assert len(listed) == len(set(listed))
    assert set(listed) == names
    assert sorted(name for name, _ in DEFAULT_RULES) == sorted(listed)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (1, 8, 1)),
        (MeshConfig(data=-1, fsdp=2, tensor=2), (2, 2, 2)),
        (MeshConfig(data=-1, fsdp=128, tensor=2), (1, 4, 2)),
        (MeshConfig(data=-1, fsdp=128, tensor=16), (1, 1, 8)),
        (MeshConfig(data=8, fsdp=1, tensor=1), (8, 1, 1)),
    ],
)
def test_one_axis_takes_what_is_left(config: MeshConfig, shape: tuple[int, ...]) -> None:
    mesh = make_mesh(config)
    assert mesh.axis_names == MESH_AXES
    assert mesh.devices.shape == shape
    assert set(mesh.axis_types) == {AxisType.Auto}, "Linen's constraints fail on Explicit axes"


@pytest.mark.parametrize("config", [MeshConfig(fsdp=3), MeshConfig(fsdp=-1, tensor=3), MeshConfig(data=-1, fsdp=-1)])
def test_sizes_that_do_not_cover_the_devices_are_refused(config: MeshConfig) -> None:
    with pytest.raises(UserError, match=r"does not cover 8 devices.*product is 8"):
        make_mesh(config)


def test_a_mesh_over_some_of_the_devices() -> None:
    assert make_mesh(MeshConfig(), devices=jax.devices()[:2]).devices.shape == (1, 2, 1)


def test_parameters_lie_where_their_axes_say_or_on_another_axis_that_divides() -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))

    def boxed(shape: tuple[int, ...], *names: str) -> nn.LogicallyPartitioned:
        return nn.LogicallyPartitioned(jnp.zeros(shape), names)

    tree = {
        "kernel": boxed((8, 6), axes.EMBED, axes.MLP),
        "three_heads": boxed((8, 3, 4), axes.EMBED, axes.HEADS, axes.KV),
        "narrow": boxed((6, 8), axes.EMBED, axes.MLP),
        "stacked": boxed((4, 6, 7), axes.LAYERS, axes.EMBED, axes.MLP),
        "scale": boxed((8,), axes.NORM),
        "whole_tiles": boxed((12, 64), axes.EMBED, axes.MLP),
    }
    placed = jax.device_put(unbox(tree), shardings(tree, mesh))
    assert placed["kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
    assert placed["kernel"].addressable_shards[0].data.shape == (2, 3)
    assert placed["three_heads"].sharding.spec == PartitionSpec("fsdp", None, "tensor")
    assert placed["narrow"].sharding.spec == PartitionSpec(None, ("tensor", "fsdp"))
    # 2 divides 6 and 4 does not; and a scan's layers are never cut apart.
    assert placed["stacked"].sharding.spec == PartitionSpec(None, "tensor", None)
    # 4 leaves 3 rows of 12, and whole tiles of 8 of what tensor parallelism leaves of 64.
    assert placed["whole_tiles"].sharding.spec == PartitionSpec(None, ("tensor", "fsdp"))
    assert placed["scale"].is_fully_replicated


def test_a_constraint_reaches_the_compiled_program() -> None:
    """`with mesh:` would drop it without a word; under `jax.set_mesh` the output is cut as asked."""
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        out = jax.jit(lambda x: logical_constraint(x, (axes.ACT_BATCH, axes.ACT_MLP)))(jnp.zeros((8, 6)))
    assert out.addressable_shards[0].data.shape == (2, 3)


def test_a_misspelt_axis_is_an_error() -> None:
    with jax.set_mesh(make_mesh(MeshConfig())), pytest.raises(ValueError, match="act_bacth"):
        jax.jit(lambda x: logical_constraint(x, ("act_bacth", axes.ACT_EMBED)))(jnp.zeros((8, 8)))


def test_without_a_mesh_a_constraint_changes_nothing() -> None:
    x = jnp.ones((3, 5))
    assert logical_constraint(x, (axes.ACT_BATCH, axes.ACT_EMBED)) is x
