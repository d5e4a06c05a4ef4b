"""The accelerator types of Google Cloud as names of topologies."""

import pytest

from emu_jax.compile_analysis.topologies import parse_topology
from emu_jax.errors import UserError


@pytest.mark.parametrize(
    ("name", "topology", "chips"),
    [
        ("v5p-128", "v5p:4x4x4", 64),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5litepod-256", "v5e:16x16", 256),
        ("v5litepod-8", "v5e:2x4", 8),
        ("v6e-64", "v6e:8x8", 64),
        ("v6e-1", "v6e:1x1", 1),
        ("v4-32", "v4:2x2x4", 16),
        ("V5P-128", "v5p:4x4x4", 64),
    ],
)
def test_accelerator_types_are_topologies(name, topology, chips):
    parsed = parse_topology(name)
    assert str(parsed) == topology
    assert parsed.chips == chips


@pytest.mark.parametrize("name", ["v5p-127", "v5p-", "v9-8"])
def test_unknown_types_are_refused(name):
    with pytest.raises(UserError, match="There is no topology"):
        parse_topology(name)
