import importlib.util

import pytest

from emu_jax.compile_analysis import topologies
from emu_jax.compile_analysis.topologies import compile_devices, known, read_topology
from emu_jax.errors import UserError
from emu_jax.sharding.mesh import MeshConfig, read_mesh
from emu_jax.training.flops import PEAKS


def test_a_name_tells_generation_sides_and_chips():
    topology = read_topology("v5p:4x4x8", slices=2)
    assert (topology.generation, topology.sides, topology.chips) == ("v5p", (4, 4, 8), 256)
    assert str(topology) == "2 x v5p:4x4x8"


def test_half_a_v7x_is_a_device():
    topology = read_topology("v7x:4x4x4")
    assert (topology.chips, topology.devices, topology.chip.device) == (64, 128, "device")


@pytest.mark.parametrize(
    ("name", "wraps"),
    [("v5p:4x4x4", (True,) * 3), ("v5p:2x2x4", (False,) * 3), ("v5e:16x16", (True, True)), ("v6e:8x16", (False, True))],
)
def test_which_sides_are_rings(name, wraps):
    assert read_topology(name).wraps == wraps


@pytest.mark.parametrize("name", ["v5p:4x4", "v5p:3x3x3", "v9:4x4", "v5p", ""])
def test_an_unknown_topology_is_answered_with_the_known_ones(name):
    with pytest.raises(UserError) as error:
        read_topology(name)
    assert all(one in str(error.value) for one in known())


def test_the_nearest_is_named():
    with pytest.raises(UserError, match=r"did you mean v5p:4x4x4\?"):
        read_topology("v5p:4x4x44")


def test_no_slices_are_no_topology():
    with pytest.raises(UserError, match="--slices"):
        read_topology("v5e:4x4", slices=0)


def test_chips_are_as_fast_here_as_in_a_runs_mfu():
    for name, chip in topologies.CHIPS.items():
        assert chip.peak == next(peak for part, peak in PEAKS.items() if part in name)


def test_without_the_compiler_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[compile\]'"):
        compile_devices(read_topology("v5p:2x2x1"))


def test_a_mesh_in_words():
    assert read_mesh("data:2,fsdp:-1") == MeshConfig(data=2, fsdp=-1, tensor=1)


@pytest.mark.parametrize("text", ["fsdp=4", "rows:4", "fsdp:0", "fsdp:two", ""])
def test_a_mesh_that_is_not_understood(text):
    with pytest.raises(UserError, match="data:1,fsdp:64,tensor:1"):
        read_mesh(text)
