"""Names of TPU topologies, and the devices to compile for."""

import importlib.util

import pytest

from emu_jax.compile_analysis.topologies import TARGETS, compile_devices, parse_topology, topology_names
from emu_jax.errors import UserError
from emu_jax.hardware import CHIPS


def test_parse_topology():
    topology = parse_topology("v5p:4x4x8", slices=2)
    assert (topology.generation, topology.sides, topology.chips) == ("v5p", (4, 4, 8), 256)
    assert str(topology) == "2 x v5p:4x4x8"


def test_v7x_has_two_devices_per_chip():
    topology = parse_topology("v7x:4x4x4")
    assert (topology.chips, topology.devices, topology.chip.unit) == (64, 128, "device")


@pytest.mark.parametrize(
    ("name", "wraps"),
    [("v5p:4x4x4", (True,) * 3), ("v5p:2x2x4", (False,) * 3), ("v5e:16x16", (True, True)), ("v6e:8x16", (False, True))],
)
def test_dimensions_that_wrap_around(name, wraps):
    assert parse_topology(name).wraps == wraps


@pytest.mark.parametrize("name", ["v5p:4x4", "v5p:3x3x3", "v9:4x4", "v5p", ""])
def test_error_for_an_unknown_topology_lists_all(name):
    with pytest.raises(UserError) as error:
        parse_topology(name)
    assert all(known in str(error.value) for known in topology_names())


def test_error_names_the_closest_topology():
    with pytest.raises(UserError, match=r"Did you mean v5p:4x4x4\?"):
        parse_topology("v5p:4x4x44")


def test_at_least_one_slice():
    with pytest.raises(UserError, match="--slices"):
        parse_topology("v5e:4x4", slices=0)


def test_every_generation_has_chip_facts():
    assert list(TARGETS) == list(CHIPS)


def test_missing_compiler_is_an_error_with_the_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[compile\]'"):
        compile_devices(parse_topology("v5p:2x2x1"))
