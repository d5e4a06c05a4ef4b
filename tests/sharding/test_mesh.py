"""Mesh sizes: parsing, filling in -1, and errors."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import AxisType

from emu_jax.errors import UserError
from emu_jax.sharding.mesh import MeshConfig, make_mesh, parse_mesh
from emu_jax.sharding.rules import MESH_AXES


def test_parse_mesh() -> None:
    assert parse_mesh("data:2,fsdp:-1") == MeshConfig(data=2, fsdp=-1, tensor=1)
    assert parse_mesh("fsdp:4,tensor:2") == MeshConfig(data=1, fsdp=4, tensor=2)


@pytest.mark.parametrize("text", ["fsdp=4", "rows:4", "fsdp:0", "fsdp:two", "data:--1", "data:-2", ""])
def test_invalid_mesh_text_is_an_error_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match="data:1,fsdp:-1,tensor:1"):
        parse_mesh(text)


@pytest.mark.parametrize("sizes", [{"data": 0, "fsdp": -1}, {"tensor": -2}])
def test_invalid_sizes_in_a_config_are_an_error(sizes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must be at least 1, or -1 for the rest"):
        MeshConfig(**sizes)


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
def test_minus_one_is_the_remaining_devices(config: MeshConfig, shape: tuple[int, ...]) -> None:
    mesh = make_mesh(config)
    assert mesh.axis_names == MESH_AXES
    assert mesh.devices.shape == shape
    assert set(mesh.axis_types) == {AxisType.Auto}, "Linen's constraints fail on Explicit axes"


@pytest.mark.parametrize("config", [MeshConfig(fsdp=3), MeshConfig(fsdp=-1, tensor=3), MeshConfig(data=-1, fsdp=-1)])
def test_sizes_must_cover_the_devices(config: MeshConfig) -> None:
    with pytest.raises(UserError, match=r"does not cover 8 devices.*product is 8"):
        make_mesh(config)


def test_mesh_over_a_subset_of_the_devices() -> None:
    assert make_mesh(MeshConfig(), devices=jax.devices()[:2]).devices.shape == (1, 2, 1)
