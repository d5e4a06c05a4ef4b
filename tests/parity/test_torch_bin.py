"""`.bin` and `.pt` files: PyTorch's files are read, and PyTorch loads ours with strict=True."""

import argparse
import os
import pathlib
import pickle

import ml_dtypes
import numpy as np
import pytest

from emu_jax.__main__ import main
from emu_jax.convert.emu_table import emu_table, peft_name, unused_shapes
from emu_jax.convert.export_torch import prepare_export
from emu_jax.io.tensor_files import open_checkpoint, open_tensors
from tests.convert.release import random_state, small_config, write_release

torch = pytest.importorskip("torch")


def run(command, *words):
    return main([command, *map(str, words)])


def in_torch(state):
    bits = {name: a.view(np.uint16) if a.dtype == ml_dtypes.bfloat16 else a for name, a in state.items()}
    return {n: torch.from_numpy(a).view(torch.bfloat16) if a.dtype == np.uint16 else torch.from_numpy(a)
            for n, a in bits.items()}  # fmt: skip


def assert_same(tensors, state):
    assert tensors.keys() == state.keys()
    for name, array in state.items():
        read = tensors[name].read()
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array, err_msg=name)


@pytest.mark.parametrize("wrap", ["", "module", "state_dict"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_bin_files_are_read(tmp_path, wrap, dtype):
    state = random_state(small_config(), dtype=dtype)
    torch.save({wrap: in_torch(state), "step": 3} if wrap else in_torch(state), tmp_path / "pytorch_model.bin")
    assert_same(open_tensors(tmp_path / "pytorch_model.bin"), state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}, "epoch": 3},
        lambda state: {"ema_state_dict": state},
        lambda state: {"state_dict": state, "ema_state_dict": {n: 2 * t for n, t in state.items()}},
        lambda state: {"weights": state, "args": argparse.Namespace(lr=1e-4, out=pathlib.PosixPath("runs"))},
        lambda state: {"params": state, "module": {"lr": 0.1}},
        lambda state: {"app": {"model": state}},
    ],
)
def test_wrapped_state_dicts_are_found_and_reported(tmp_path, wrap):
    state = random_state(small_config())
    torch.save(wrap(in_torch(state)), tmp_path / "last.ckpt")
    opened = open_checkpoint(tmp_path / "last.ckpt")
    assert_same(opened.tensors, state)
    assert len(opened.notes) == 1


def test_files_of_pytorch_before_1_6_are_read(tmp_path):
    state = random_state(small_config())
    torch.save(in_torch(state), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same(open_tensors(tmp_path / "old.pt"), state)


def test_views_of_one_storage_are_read(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": base.T, "b": base[1]}, tmp_path / "views.pt")
    assert_same(open_tensors(tmp_path / "views.pt"), {"a": base.T.numpy(), "b": base[1].numpy()})


@pytest.mark.parametrize("lora", [False, True])
def test_the_release_loads_an_export_with_strict(tmp_path, lora):
    """A module with the release's names and shapes loads the export with strict=True, bit-exact."""
    config = small_config(lora=lora)
    state = random_state(config)
    torch.save({"module": in_torch(state)}, tmp_path / "Emu.pt")
    write_release(tmp_path / "c", config, {})
    words = ("import-torch", tmp_path / "Emu.pt", tmp_path / "model", "--config", tmp_path / "c" / "config.json")
    assert run(*words) == 0
    assert run("export-torch", tmp_path / "model", tmp_path / "out", "--bin") == 0
    assert {"config.json", "pytorch_model.bin"} <= {p.name for p in (tmp_path / "out").iterdir()}
    exported = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)

    shapes = {n: row.torch_shape for row in emu_table(config) for n in row.names} | unused_shapes(config)
    released = torch.nn.Module()
    for name, shape in shapes.items():
        *path, leaf = (peft_name(name) if lora else name).split(".")
        module = released
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(leaf, torch.nn.Parameter(torch.empty(shape)))
    released.load_state_dict(exported, strict=True)
    for name, tensor in released.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), state[name], err_msg=name)


def test_bfloat16_is_rounded_as_in_pytorch(tmp_path):
    config = small_config()
    state = random_state(config)
    assert run("import-torch", write_release(tmp_path / "source", config, state), tmp_path / "model") == 0
    prepare_export(tmp_path / "model", dtype=ml_dtypes.bfloat16).write(tmp_path / "out", binary=True)
    exported = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    for name, tensor in in_torch(state).items():
        assert torch.equal(exported[name], tensor.to(torch.bfloat16)), name


class Malicious:
    """An object whose pickle runs a command."""

    def __reduce__(self):
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("kind", ["torch", "pickle", "text", "truncated", "list", "numbers"])
def test_invalid_bin_files_are_refused_in_one_line(tmp_path, kind, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    if kind == "torch":
        torch.save({"a": torch.zeros(2), "b": Malicious()}, file)
    elif kind == "pickle":
        file.write_bytes(pickle.dumps({"a": Malicious()}))
    elif kind == "text":
        file.write_text("not a checkpoint")
    elif kind == "truncated":
        torch.save(in_torch(random_state(small_config())), file)
        file.write_bytes(file.read_bytes()[:-5000])
    elif kind == "list":
        torch.save([torch.zeros(2)], file)
    elif kind == "numbers":
        torch.save({"lr": 0.1}, file)
    assert run("import-torch", file, tmp_path / "model") == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    expected = {"torch": "code in it", "pickle": "code in it", "list": "list", "numbers": "float"}
    assert expected.get(kind, "not a PyTorch checkpoint") in error
    assert [p.name for p in tmp_path.iterdir()] == ["pytorch_model.bin"]
