"""Shardings of the 14B against the golden file, and their memory."""

import json

import pytest

from tests.golden.shardings import MESHES, PATH, current


@pytest.fixture(scope="module")
def shardings():
    return current()


@pytest.mark.parametrize("mesh", MESHES)
def test_shardings_match_the_golden_file(shardings, mesh):
    """After an intended change, `python -m tests.golden.shardings` writes the file; check the difference."""
    assert shardings[mesh] == json.loads(PATH.read_text())[mesh]


@pytest.mark.parametrize("mesh", [mesh for mesh in MESHES if mesh != "fsdp over 256"])
def test_few_parameters_are_replicated(shardings, mesh):
    """Each device holds its fraction of 14.18e9 float32 parameters, and at most 5% more."""
    _, fsdp, tensor = MESHES[mesh]
    assert float(shardings[mesh]["all"].split()[0]) * 2**20 < 1.05 * 4 * 14.18e9 / (fsdp * tensor)


def test_over_256_devices_only_indivisible_parameters_are_replicated(shardings):
    """256 divides neither 1408 = 128 x 11 nor 16 heads of 88. With 2 x 128 devices, each chip holds 426 MiB."""
    rows = {path: row for path, row in shardings["fsdp over 256"].items() if path != "all"}
    replicated = {path for path, row in rows.items() if "fsdp" not in row and int(row.rsplit(": ")[-1]) > 4e6}
    assert replicated == {
        "vision_encoder/blocks/attention/qkv/kernel",
        "vision_encoder/blocks/attention/out/kernel",
        "causal_former/blocks/cross_attention/key/kernel",
        "causal_former/blocks/cross_attention/value/kernel",
    }
    assert "('tensor', 'fsdp')" in rows["vision_encoder/blocks/mlp/up/kernel"]
