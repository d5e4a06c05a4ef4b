import json

import pytest

from tests.golden.shardings import MESHES, PATH, current


@pytest.fixture(scope="module")
def now():
    return current()


@pytest.mark.parametrize("mesh", MESHES)
def test_the_14b_lies_where_it_did(now, mesh):
    """Meant to change? `python -m tests.golden.shardings` writes it anew; read the difference before you commit it."""
    assert now[mesh] == json.loads(PATH.read_text())[mesh]


@pytest.mark.parametrize("mesh", MESHES)
def test_hardly_anything_is_whole_on_every_chip(now, mesh):
    """14.18e9 float32 parameters over fsdp x tensor, and at most 5% more for what is not sharded."""
    _, fsdp, tensor = MESHES[mesh]
    assert float(now[mesh]["all"].split()[0]) * 2**20 < 1.05 * 4 * 14.18e9 / (fsdp * tensor)
