"""Forms of an export for the versions and programs that read it."""

import json

import ml_dtypes
import numpy as np
import pytest

from emu_jax.__main__ import main
from emu_jax.convert.emu_table import base_layer_name, peft_name
from emu_jax.convert.load import load_model
from emu_jax.convert.visual_decoder import load_visual_decoder
from emu_jax.io.tensor_files import open_tensors
from tests.convert.release import random_state, small_config, write_release
from tests.convert.test_visual_decoder import decoder, diffusers  # noqa: F401  fixtures

CONFIG = small_config(dim=28)


def run(command, *words):
    assert main([command, *map(str, words)]) == 0


@pytest.fixture
def model(tmp_path, diffusers):  # noqa: F811
    run("import-torch", write_release(tmp_path / "source", CONFIG, random_state(CONFIG)), diffusers, tmp_path / "model")
    return tmp_path / "model"


def test_the_decoder_is_cast_and_named_by_its_variant(tmp_path, model, diffusers):  # noqa: F811
    run("export-torch", model, tmp_path / "out", "--variant", "fp16")
    file = tmp_path / "out" / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    tensors, saved = open_tensors(file), open_tensors(diffusers / "unet")
    assert tensors.keys() == saved.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.read(), saved[name].read().astype(np.float16))
    run("export-torch", diffusers, tmp_path / "alone", "--dtype", "bfloat16")
    assert {t.dtype for t in open_tensors(tmp_path / "alone" / "vae").values()} == {np.dtype(ml_dtypes.bfloat16)}
    for name in ("out", "alone"):
        index = json.loads((tmp_path / name / "model_index.json").read_text())
        assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
        assert index["safety_checker"] == [None, None]
        assert load_visual_decoder(tmp_path / name).initialized == ()


def test_legacy_names_of_the_autoencoder_are_written_and_read(tmp_path, diffusers):  # noqa: F811
    run("export-torch", diffusers, tmp_path / "out", "--legacy-attention")
    names = open_tensors(tmp_path / "out" / "vae").keys()
    attention = {name.split("attentions.0.")[1] for name in names if "attentions.0." in name}
    assert attention == {
        f"{layer}.{kind}"
        for layer in ("group_norm", "query", "key", "value", "proj_attn")
        for kind in ("weight", "bias")
    }
    assert open_tensors(tmp_path / "out" / "unet").keys() == open_tensors(diffusers / "unet").keys()
    load_visual_decoder(tmp_path / "out")


def test_frequencies_are_written_on_request_and_ignored_on_import(tmp_path, model):
    run("export-torch", model, tmp_path / "out", "--inv-freq")
    tensors = open_tensors(tmp_path / "out")
    values = tensors["decoder.lm.model.layers.1.self_attn.rotary_emb.inv_freq"].read()
    np.testing.assert_allclose(values, 10000.0 ** -(np.arange(8) / 8), rtol=1e-6, atol=0)
    assert values.dtype == np.float32
    assert load_model(tmp_path / "out").config == CONFIG


def test_the_names_of_newer_peft_are_written_and_read(tmp_path):
    config = small_config(lora=True)
    state = random_state(config)
    run("import-torch", write_release(tmp_path / "source", config, state), tmp_path / "model")
    run("export-torch", tmp_path / "model", tmp_path / "out", "--base-layer")
    expected = {n if "lora_" in n else base_layer_name(n) for n in state}
    assert open_tensors(tmp_path / "out").keys() == expected
    query = peft_name("decoder.lm.model.layers.0.self_attn.q_proj.base_layer.weight")
    assert query in expected
    ours = load_model(tmp_path / "out").params["decoder"]["blocks"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(ours, load_model(tmp_path / "model").params["decoder"]["blocks"]["attention"]["query"]["kernel"])  # fmt: skip  # noqa: E501


def test_a_model_without_a_decoder_has_no_pipeline(tmp_path, capsys):
    run("import-torch", write_release(tmp_path / "source", CONFIG, random_state(CONFIG)), tmp_path / "model")
    assert main(["export-torch", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "pipeline"]) == 2
    assert "requires a model with a visual decoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
