"""export-torch: equal names, shapes and bits; merged adapters; casts; no incomplete files."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from emu_jax.__main__ import main
from emu_jax.checkpoints.model_directory import carry_unused, save_model
from emu_jax.checkpoints.params import save_params
from emu_jax.config import to_dict
from emu_jax.convert.emu_table import DECODER, unused_shapes
from emu_jax.convert.load import load_model
from emu_jax.io.tensor_files import open_tensors
from emu_jax.models.emu import Emu
from tests.convert.release import random_state, small_config, write_release


def run(command, *words):
    return main([command, *map(str, words)])


def values(folder):
    return {name: tensor.read() for name, tensor in open_tensors(folder).items()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def imported(tmp_path, *, lora=False, dtype=np.float32):
    config = small_config(lora=lora)
    state = random_state(config, dtype=dtype)
    assert run("import-torch", write_release(tmp_path / "source", config, state), tmp_path / "model") == 0
    return config, state


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
def test_an_exported_import_is_bit_exact(tmp_path, lora, dtype):
    config, state = imported(tmp_path, lora=lora, dtype=dtype)
    assert run("export-torch", tmp_path / "model", tmp_path / "out") == 0
    assert_same(values(tmp_path / "out"), state)
    assert load_model(tmp_path / "out").config.decoder == config.decoder


def test_an_imported_export_is_the_same_model(tmp_path):
    imported(tmp_path)
    assert run("export-torch", tmp_path / "model", tmp_path / "out", "--shard-gb", "0.00002") == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert run("import-torch", tmp_path / "out", tmp_path / "again") == 0
    first, second = load_model(tmp_path / "model"), load_model(tmp_path / "again")
    assert first.config == second.config
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_the_hugging_face_layout_is_imported_again(tmp_path):
    _, state = imported(tmp_path)
    assert run("export-torch", tmp_path / "model", tmp_path / "out", "--format", "huggingface") == 0
    llama, rest = values(tmp_path / "out"), values(tmp_path / "out" / "emu")
    assert_same({DECODER + name: array for name, array in llama.items()} | rest, state)
    assert "model.embed_tokens.weight" in llama
    assert DECODER + "stu_regress_head.weight" in rest
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 300
    assert run("import-torch", tmp_path / "out", tmp_path / "out" / "emu", tmp_path / "again") == 0
    assert run("export-torch", tmp_path / "again", tmp_path / "out2") == 0
    assert_same(values(tmp_path / "out2"), state)


def test_tensors_are_cast(tmp_path):
    _, state = imported(tmp_path)
    assert run("export-torch", tmp_path / "model", tmp_path / "out", "--dtype", "bfloat16") == 0
    assert_same(values(tmp_path / "out"), {name: a.astype(ml_dtypes.bfloat16) for name, a in state.items()})


def test_merged_adapters_compute_the_same(tmp_path):
    config, _ = imported(tmp_path, lora=True)
    assert run("export-torch", tmp_path / "model", tmp_path / "out", "--merge-lora") == 0
    assert not [name for name in open_tensors(tmp_path / "out") if "lora" in name or "base_model" in name]
    tokens = jnp.asarray(np.arange(12, dtype=np.int32)[None])

    def hidden(folder):
        parts = load_model(folder)
        model = Emu(parts.config, image_token_id=299)
        return parts.config.lora, jax.jit(model.apply)({"params": parts.params}, tokens).hidden

    (lora, adapted), (none, merged) = hidden(tmp_path / "model"), hidden(tmp_path / "out")
    assert (lora, none) == (config.lora, None)
    np.testing.assert_allclose(merged, adapted, atol=2e-5)


def test_a_model_without_the_unused_tensors_exports_zeros(tmp_path, capsys):
    config = small_config()
    params = load_model(write_release(tmp_path / "source", config, random_state(config))).params
    save_model(tmp_path / "model", config, params)
    assert run("export-torch", tmp_path / "model", tmp_path / "out") == 0
    assert "because this model does not have them: visual.norm.weight" in capsys.readouterr().out
    exported = values(tmp_path / "out")
    for name, shape in unused_shapes(config).items():
        assert exported[name].shape == shape
        assert not exported[name].any()


def test_a_run_and_its_steps_are_exported(tmp_path):
    """The newest step of a run that started from an imported model, including the unused tensors of that model."""
    config, state = imported(tmp_path)
    params = load_model(tmp_path / "model").params
    workdir = tmp_path / "run"
    for step, factor in ((5, 2), (40, 4)):
        save_params(workdir / "checkpoints" / str(step), jax.tree.map(lambda a, f=factor: f * a, params))
    (workdir / "config.json").write_text(json.dumps({"model": to_dict(config), "train": {"steps": 40}}))
    carry_unused(tmp_path / "model", workdir)
    for source, factor in ((workdir, 4), (workdir / "checkpoints" / "5", 2)):
        out = tmp_path / f"out{factor}"
        assert run("export-torch", source, out) == 0
        unused = unused_shapes(config)
        assert_same(values(out), {name: a if name in unused else factor * a for name, a in state.items()})


def test_adapters_are_refused_in_a_llama_folder(tmp_path, capsys):
    imported(tmp_path, lora=True)
    words = ("export-torch", tmp_path / "model", tmp_path / "out", "--format", "huggingface")
    assert run(*words) == 2
    assert "--merge-lora" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(*words, "--merge-lora") == 0


def test_invalid_exports_leave_no_files(tmp_path, capsys):
    imported(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("text")
    for words, message in (
        ((tmp_path / "model", tmp_path / "full"), "exists already"),
        ((tmp_path / "absent", tmp_path / "out"), "not a model directory"),
        ((tmp_path / "source", tmp_path / "out"), "not a model directory"),
        ((tmp_path / "model", tmp_path / "out", "--merge-lora"), "no adapters"),
    ):
        assert run("export-torch", *words) == 2
        assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "model", "source"]


def test_a_damaged_model_is_refused(tmp_path, capsys):
    imported(tmp_path)
    for file in (tmp_path / "model" / "params").rglob("d/*"):
        file.write_bytes(bytes(file.stat().st_size))
    assert run("export-torch", tmp_path / "model", tmp_path / "out") == 2
    assert len(capsys.readouterr().err.strip().splitlines()[-1:]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "source"]


def test_parameters_of_another_config_are_refused(tmp_path, capsys):
    imported(tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["decoder"]["mlp_dim"] += 1
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert run("export-torch", tmp_path / "model", tmp_path / "out") == 2
    assert "of a different shape" in capsys.readouterr().err
