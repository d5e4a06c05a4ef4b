"""Damaged files and files of another type: never a crash, never a wrong pairing of text and image."""

import json

import numpy as np
import pytest

from emu_jax.data.sources import SOURCES, Rejected
from emu_jax.errors import UserError
from tests.data.sources.makers import MAKERS, make_mmc4, pairs_of, read


def test_a_truncated_json_line_and_unknown_fields(tmp_path):
    path = make_mmc4(tmp_path)
    lines = path.read_text().splitlines()
    lines[1] = lines[1][: len(lines[1]) // 2]
    lines[2] = json.dumps({**json.loads(lines[2]), "an_unknown_field": [1, {"x": None}]})
    path.write_text("\n".join(lines))
    found = read("mmc4", path)
    assert [isinstance(f, Rejected) for f in found] == [False, True, False, False, False, False]
    assert found[1].key == f"{path.name}:2"


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_a_file_of_another_type_is_a_user_error(source, tmp_path):
    path = tmp_path / "file_questions.json"
    path.write_bytes(b"\x00\x01 neither tar nor json nor parquet nor csv")
    if SOURCES[source].read is SOURCES["jsonl"].read or source == "mmc4":
        assert all(isinstance(f, Rejected) for f in read(source, path))
    else:
        with pytest.raises(UserError, match="file_questions"):
            read(source, path)
    with pytest.raises(UserError, match=r"cannot be read|is not a parquet"):
        read(source, tmp_path / "missing_questions.json")


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("source", MAKERS)
def test_mutated_files(source, count, tmp_path):
    """Bytes are changed, removed, repeated or zeroed, or the end is removed: no crash, and texts match images."""
    rng = np.random.default_rng(list(source.encode()))
    path = MAKERS[source](tmp_path)
    intact = path.read_bytes()
    documents = 0
    for i in range(count):
        data = bytearray(intact)
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 40))
        match i % 5:
            case 0:
                for position in rng.integers(0, len(data), rng.integers(1, 6)):
                    data[position] = rng.integers(0, 256)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                del data[at:]
            case 4:
                data[at : at + 20 * length] = bytes(len(data[at : at + 20 * length]))
        path.write_bytes(data)
        try:
            found = read(source, path)
        except UserError:
            continue
        for texts, images in pairs_of(found):
            assert texts == images, (source, i)
            documents += 1
    if source not in ("sharegpt", "alpaca"):
        assert documents > count // 10, "enough documents must remain to compare"
