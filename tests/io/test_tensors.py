"""Weight files in PyTorch's layouts, read and written without PyTorch."""

import json
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emu_jax.errors import UserError
from emu_jax.io.safetensors_files import write_safetensors
from emu_jax.io.tensor_files import open_tensors
from emu_jax.io.tensors import Tensor
from tests.convert.release import write_state

STATE = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.float16),
    "c": np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
    "steps": np.array([7], np.int64),
}


def values(tensors):
    return {name: tensor.read() for name, tensor in tensors.items()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array)


def test_files_of_the_safetensors_library_are_read(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    tensors = open_tensors(tmp_path / "model.safetensors")
    assert tensors["a.weight"].shape == (2, 3)
    assert_same(values(tensors), STATE)


def test_the_safetensors_library_reads_our_files(tmp_path):
    write_state(tmp_path, STATE)
    assert_same(load_file(tmp_path / "model.safetensors"), STATE)


def test_shards_have_an_index_and_a_maximum_size(tmp_path):
    state = {f"t{i}": np.full((10, 10), i, np.float32) for i in range(7)}
    write_state(tmp_path, state, shard_bytes=900)  # two tensors of 400 bytes in each
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 7 * 400
    assert index["weight_map"]["t2"] == "model-00002-of-00004.safetensors"
    assert_same(values(open_tensors(tmp_path)), state)


def test_each_tensor_is_read_when_it_is_written(tmp_path):
    events = []

    def tensor(name):
        return Tensor(name, (2,), np.dtype(np.float32), lambda: events.append(name) or np.zeros(2, np.float32))

    write_safetensors(tmp_path, [tensor("a"), tensor("b")], progress=events.append)
    assert events == ["a", 8, "b", 8]


def test_a_missing_shard_is_named(tmp_path):
    write_state(tmp_path, {f"t{i}": np.zeros(100, np.float32) for i in range(3)}, shard_bytes=500)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00003"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("length", [4, 30, -1])
def test_truncated_files_are_refused(tmp_path, length):
    write_state(tmp_path, STATE)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        open_tensors(file)


@pytest.mark.parametrize("name", ["model.safetensors", "notes.txt"])
def test_other_files_are_refused(tmp_path, name):
    (tmp_path / name).write_text("This is not a checkpoint, whatever its name says. " * 10)
    with pytest.raises(UserError, match="not a"):
        open_tensors(tmp_path / name)


def test_a_contradictory_header_is_refused(tmp_path):
    write_state(tmp_path, STATE)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"shape":[2,3]', b'"shape":[2,4]'))
    with pytest.raises(UserError, match="not a complete safetensors file"):
        open_tensors(file)


@pytest.mark.parametrize(
    "entry",
    [
        [],
        {"dtype": "F32", "shape": [1]},
        {"shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]},
        {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
    ],
)
def test_invalid_headers_are_refused(tmp_path, entry):
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match=r"not a complete safetensors file|not supported"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}'])
def test_invalid_indices_are_refused(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"not an index|not valid JSON"):
        open_tensors(tmp_path)


def test_empty_and_absent_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="has no checkpoint"):
        open_tensors(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        open_tensors(tmp_path / "absent")


def test_a_tensor_in_two_files_is_refused(tmp_path):
    write_state(tmp_path, {"a": np.zeros(2, np.float32)})
    for name in ("eva.safetensors", "llama.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / "model.safetensors").read_bytes())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="Keep one"):
        open_tensors(tmp_path)


def test_bin_files_without_pytorch_are_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(UserError, match="pip install torch"):
        open_tensors(tmp_path)
