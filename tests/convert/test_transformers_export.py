"""The folder of the format transformers: its files, its model card, and the way back. tests/parity runs its code."""

import json

import numpy as np
import pytest
from flax import traverse_util

from emu_jax.cli.export_torch import main as export_torch
from emu_jax.cli.import_torch import main as import_torch
from emu_jax.convert.emu_config import read_config
from emu_jax.convert.emu_table import emu_table
from emu_jax.convert.export_torch import Layout, prepare_export
from emu_jax.convert.import_torch import prepare_import
from emu_jax.convert.load import load_model
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.errors import UserError
from tests.convert.release import random_state, small_config, with_parts, write_release


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return the directory of a small model with a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    return write_model(folder)


def write_model(folder, **options):
    tokenizer = train_tokenizer(["a red dog and a blue cat"] * 4, folder / "pieces.model", vocab_size=290)
    config = with_parts(small_config(**options), decoder={"vocab_size": tokenizer.vocab_size})
    release = write_release(folder / "release", config, random_state(config))
    prepare_import([release], tokenizer=folder / "pieces.model").write(folder / "model")
    return folder / "model"


def flat_params(directory):
    return traverse_util.flatten_dict(load_model(directory).params, sep="/")


def test_import_of_the_export_gives_the_same_bits(model, tmp_path, capsys):
    export_torch([str(model), str(tmp_path / "out"), "--format=transformers", "--shard-gb=0.00002"])
    assert "zeros" not in capsys.readouterr().out
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    expected = {name for row in emu_table(read_config(tmp_path / "out" / "config.json")) for name in row.names}
    assert set(index["weight_map"]) == expected
    assert len(set(index["weight_map"].values())) > 1
    import_torch([str(tmp_path / "out"), str(tmp_path / "back")])
    before, after = flat_params(model), flat_params(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert read_config(tmp_path / "back" / "config.json") == read_config(model / "config.json")
    assert all(np.array_equal(before[name], array) for name, array in flat_params(tmp_path / "out").items())


def test_every_class_of_the_auto_map_is_in_the_folder(model, tmp_path):
    prepare_export(model).write(tmp_path / "out", layout=Layout.TRANSFORMERS)
    for name, reference in json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"].items():
        module, cls = reference.split(".")
        assert f"class {cls}(" in (tmp_path / "out" / f"{module}.py").read_text(), name


def test_model_card(model, tmp_path):
    scores = tmp_path / "scores" / "coco_caption"
    scores.mkdir(parents=True)
    (scores / "scores.json").write_text(json.dumps({"scores": {"CIDEr": 112.4}, "units": {"CIDEr": "points"}}))
    options = ["--license=mit", "--base-model=BAAI/Emu", f"--scores={tmp_path / 'scores'}"]
    export_torch([str(model), str(tmp_path / "out"), "--format=transformers", *options])
    card = (tmp_path / "out" / "README.md").read_text()
    _, metadata, text = card.split("---\n", 2)
    assert {"license: mit", "base_model: BAAI/Emu", "library_name: transformers"} <= set(metadata.splitlines())
    assert "| coco_caption: CIDEr | `112.4` |" in text
    assert "8 x 8 pixels as 3 embeddings" in text


def test_adapters_must_be_merged(tmp_path):
    directory = write_model(tmp_path, lora=True)
    with pytest.raises(UserError, match="--merge-lora"):
        prepare_export(directory).write(tmp_path / "out", layout=Layout.TRANSFORMERS)
    assert not (tmp_path / "out").exists()


def test_a_model_without_tokenizer_is_refused(tmp_path):
    config = small_config()
    release = write_release(tmp_path / "release", config, random_state(config))
    prepare_import([release]).write(tmp_path / "model")
    with pytest.raises(UserError, match="--tokenizer"):
        prepare_export(tmp_path / "model").write(tmp_path / "out", layout=Layout.TRANSFORMERS)


@pytest.mark.parametrize("change", [{"vision": None}, {"language_model": {"width": 20}}, {"causal_former": {"x": 1}}])
def test_an_incomplete_config_is_refused_by_name(model, tmp_path, change):
    prepare_export(model).write(tmp_path / "out", layout=Layout.TRANSFORMERS)
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(tmp_path / "out")
