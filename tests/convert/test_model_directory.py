"""Model directories: equal after saving and loading, also on a mesh; other folders are refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from emu_jax.checkpoints.model_directory import params_directory, save_model
from emu_jax.convert.emu_config import from_llama_config, read_config, to_llama_config, to_release_config
from emu_jax.convert.load import load_model
from emu_jax.errors import UserError
from emu_jax.models.presets import emu_14b
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.sharding.rules import FSDP, TENSOR
from tests.convert.release import random_state, small_config, with_parts, write_release


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "release", small_config(), random_state(small_config()))


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_saved_model_is_loaded(tmp_path, release):
    params = load_model(release).params
    (tmp_path / "spm").write_bytes(b"pieces")
    config = dataclasses.replace(with_parts(small_config(), causal_former={"dropout": 0.25}), param_dtype="float32")
    save_model(tmp_path / "model", config, params, tokenizer=tmp_path / "spm")
    parts = load_model(tmp_path / "model")
    assert parts.config == config
    assert_same(parts.params, params)
    assert parts.tokenizer.read_bytes() == b"pieces"
    assert parts.visual_decoder is None


@pytest.mark.parametrize("kind", ["release", "model"])
def test_arrays_are_sharded_by_the_rules(tmp_path, release, kind):
    expected = load_model(release).params
    save_model(tmp_path / "model", small_config(), expected)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = load_model(tmp_path / kind, mesh=mesh).params
    assert_same(params, expected)
    kernel = params["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, FSDP, TENSOR)
    assert kernel.addressable_shards[0].data.shape == (2, 10, 22)


@pytest.mark.parametrize("kind", ["release", "model"])
def test_parameters_are_cast_while_they_are_read(tmp_path, release, kind):
    params = load_model(release).params
    save_model(tmp_path / "model", small_config(), params)
    parts = load_model(tmp_path / kind, dtype="bfloat16")
    assert (parts.config.dtype, parts.config.param_dtype) == ("bfloat16", "bfloat16")
    assert_same(parts.params, jax.tree.map(lambda a: a.astype("bfloat16"), params))


def test_the_newest_step_of_a_run_is_found(tmp_path):
    for step in (5, 100, 20):
        (tmp_path / "checkpoints" / str(step) / "params").mkdir(parents=True)
    (tmp_path / "checkpoints" / "200.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    assert params_directory(tmp_path) == tmp_path / "checkpoints" / "100"
    assert params_directory(tmp_path / "checkpoints") is None


def test_a_failed_write_leaves_no_files(tmp_path, release):
    params = load_model(release).params
    with pytest.raises(UserError, match="no tokenizer"):
        save_model(tmp_path / "model", small_config(), params, tokenizer=tmp_path / "absent")
    assert [p.name for p in tmp_path.iterdir()] == ["release"]
    save_model(tmp_path / "model", small_config(), params)
    with pytest.raises(UserError, match="contains a model already"):
        save_model(tmp_path / "model", small_config(), params)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "release"]


def test_other_folders_are_refused(tmp_path, release):
    with pytest.raises(UserError, match="no model at"):
        load_model(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(tmp_path / "empty")
    (release / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not the config of an Emu"):
        load_model(release)
    (release / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_model(release)


def test_a_config_that_does_not_fit_its_parameters_is_refused(tmp_path, release):
    save_model(tmp_path / "model", small_config(), load_model(release).params)
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    values["vision"]["mlp_dim"] += 1
    (tmp_path / "model" / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="vision_encoder/blocks/mlp"):
        load_model(tmp_path / "model")
    values["vision"]["mlp_dmi"] = values["vision"].pop("mlp_dim")
    (tmp_path / "model" / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="did you mean mlp_dim"):
        load_model(tmp_path / "model")


def test_a_nan_in_a_release_folder_is_found(tmp_path):
    state = random_state(small_config())
    state["ln_visual.weight"][2] = np.nan
    with pytest.raises(UserError, match=r"ln_visual\.weight"):
        load_model(write_release(tmp_path / "release", small_config(), state))


@pytest.mark.parametrize("config", [small_config(), emu_14b()])
def test_the_release_config_is_equivalent(tmp_path, config):
    values = to_release_config(config)
    assert values["lm_vocab_with_special_tokens"] == config.decoder.vocab_size
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert read_config(path) == config
    del values["emu_jax"]  # the keys of the release are sufficient
    path.write_text(json.dumps(values))
    assert read_config(path) == config


@pytest.mark.parametrize(
    "other", [{"hidden_act": "gelu"}, {"attention_bias": True}, {"rope_scaling": {"type": "linear"}}, {"head_dim": 11}]
)
def test_unsupported_llamas_are_refused(other):
    values = to_llama_config(small_config().decoder, vocab_size=300)
    assert from_llama_config(values, vocab_size=300) == dataclasses.replace(small_config().decoder)
    with pytest.raises(UserError, match=next(iter(other))):
        from_llama_config(values | other, vocab_size=300)
