"""Checkpoints as users of other programs have them: extra rows, other configs, one-file and sharded models."""

import json
import shutil

import numpy as np
import pytest

from emu_jax.__main__ import main
from emu_jax.convert.emu_config import from_llama_config, to_llama_config
from emu_jax.convert.export_torch import prepare_export
from emu_jax.convert.import_torch import prepare_import
from emu_jax.convert.release_files import EMU_JSON, read_emu_config, release_files
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.errors import UserError
from emu_jax.models.presets import emu_14b
from tests.convert.release import random_state, small_config, with_parts, write_release, write_state

LINES = ["a small red circle", "a large blue square next to it"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return path, train_tokenizer(LINES, path, vocab_size=280).pad_id


def llama_state(rows):
    config = with_parts(small_config(), decoder={"vocab_size": rows})
    names = ("decoder.lm.model.", "decoder.lm.lm_head.")
    return {n.removeprefix("decoder.lm."): a for n, a in random_state(config).items() if n.startswith(names)}


@pytest.mark.parametrize("extra", [1, 24])
def test_rows_past_the_tokenizer_are_cropped(tmp_path, tokenizer, extra):
    path, pieces = tokenizer
    state = llama_state(pieces + extra)
    write_state(tmp_path / "llama", state)
    values = to_llama_config(small_config().decoder, vocab_size=pieces + extra)
    (tmp_path / "llama" / "config.json").write_text(json.dumps(values))
    shutil.copy(path, tmp_path / "llama" / "tokenizer.model")
    prepared = prepare_import([tmp_path / "llama" / "model.safetensors"])  # the tokenizer is next to the file
    assert prepared.config.decoder.vocab_size == pieces + 4
    assert (
        f"vocabulary cropped from {pieces + extra} to {pieces} rows, the pieces of the tokenizer"
        in prepared.match.notes
    )
    table = prepared.match.parameters["decoder/token_embedding"].materialize()
    np.testing.assert_array_equal(table[:pieces], state["model.embed_tokens.weight"][:pieces])
    mean = state["model.embed_tokens.weight"][:pieces].mean(axis=0)
    np.testing.assert_allclose(table[pieces : pieces + 4], np.broadcast_to(mean, (4, 20)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("special", [4, 6])
def test_padding_of_an_emu_is_cropped(tmp_path, tokenizer, special, config):
    """By the config, or without one by the tokenizer and the adapters."""
    path, pieces = tokenizer
    emu = with_parts(small_config(lora=special == 6), decoder={"vocab_size": pieces + special})
    state = random_state(emu)
    padded = dict(state)
    for name in [name for name in state if "embed_tokens" in name or "lm_head" in name]:
        if name.startswith("decoder.") and len(state[name]) == pieces + special:
            padded[name] = np.pad(state[name], [(0, 60), (0, 0)])
    folder = write_release(tmp_path / "emu", emu, padded)
    shutil.copy(path, folder / "tokenizer.model")
    if not config:
        files = release_files(emu, pieces=pieces, embed_dim=10, t5_rows=10, dtype="float32")
        for name, values in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(values))
        (folder / "config.json").unlink()
    prepared = prepare_import([folder])
    note = f"vocabulary cropped from {pieces + special + 60} to {pieces + special} rows, the vocabulary of this Emu"
    assert prepared.match.notes.count(note) == 1
    assert prepared.config.decoder.vocab_size == pieces + special
    table = prepared.match.parameters["decoder/token_embedding"].materialize()
    expected = next(a for n, a in state.items() if n.startswith("decoder.") and "embed_tokens" in n)
    np.testing.assert_array_equal(table[: pieces + special], expected)


def test_without_a_tokenizer_the_rows_are_kept_in_one_line(tmp_path):
    write_state(tmp_path, llama_state(300))
    (tmp_path / "config.json").write_text(json.dumps(to_llama_config(small_config().decoder, vocab_size=300)))
    prepared = prepare_import([tmp_path])
    assert prepared.config.decoder.vocab_size == 304
    assert sum("all 300 rows" in note for note in prepared.match.notes) == 1


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": None},
        {"rope_scaling": {"type": "default"}},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_scaling": {"type": "linear", "factor": 1.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_parameters": {"rope_theta": 500.0}, "rope_scaling": None},
    ],
)
def test_unscaled_rotary_positions_are_accepted(rope):
    values = to_llama_config(small_config().decoder, vocab_size=300) | rope
    theta = 500.0 if "500.0" in str(rope) else 10000.0
    assert from_llama_config(values, vocab_size=300).rope_theta == theta


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
    ],
)
def test_scaled_rotary_positions_are_refused(rope):
    with pytest.raises(UserError, match="rope_"):
        from_llama_config(to_llama_config(small_config().decoder, vocab_size=300) | rope, vocab_size=300)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"),
            "from_single_file",
        ),
        (("tok_embeddings.weight", "layers.0.attention.wq.weight"), "convert_llama_weights_to_hf"),
        (("down_blocks.0.resnets.0.conv1.weight",), "has unet/, vae/ and scheduler/"),
    ],
)
def test_other_layouts_name_their_converter(tmp_path, names, message, capsys):
    write_state(tmp_path, {name: np.zeros(1, np.float32) for name in names})
    (tmp_path / "model.safetensors").rename(tmp_path / "v1-5-pruned.safetensors")
    for source in (tmp_path / "v1-5-pruned.safetensors", tmp_path):
        assert main(["import-torch", str(source), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1
        assert message in error[0]


def test_meta_shards_name_their_converter_without_being_read(tmp_path, capsys):
    for name in ("consolidated.00.pth", "consolidated.01.pth", "params.json"):
        (tmp_path / name).write_text("not read")
    for source in (tmp_path, tmp_path / "consolidated.00.pth"):
        assert main(["import-torch", str(source), str(tmp_path / "out")]) == 2
        assert "convert_llama_weights_to_hf" in capsys.readouterr().err


def test_the_config_files_of_the_release_go_in_and_out(tmp_path, tokenizer):
    """An export's three files alone describe the model, also where the released code has them."""
    config = with_parts(small_config(), decoder={"vocab_size": tokenizer[1] + 4}, causal_former={"relpos_buckets": 16})
    state = random_state(config)
    state["visual.head.weight"], state["visual.head.bias"] = np.ones((10, 16), np.float32), np.ones(10, np.float32)
    write_release(tmp_path / "source", config, state)
    values = json.loads((tmp_path / "source" / "config.json").read_text())
    values["cformer"]["relative_attention_num_buckets"] = 16
    (tmp_path / "source" / "config.json").write_text(json.dumps(values))
    shutil.copy(tokenizer[0], tmp_path / "source" / "tokenizer.model")
    assert main(["import-torch", str(tmp_path / "source"), str(tmp_path / "model")]) == 0
    out = tmp_path / "out"
    prepare_export(tmp_path / "model").write(out)
    values = json.loads((out / "config.json").read_text())
    assert (values["embed_dim"], values["vocab_size"], values["torch_dtype"]) == (10, tokenizer[1] + 4, "float32")
    assert values["pad_token_id"] == json.loads((out / "generation_config.json").read_text())["pad_token_id"]
    assert values["pad_token_id"] == tokenizer[1]
    emu, llama, t5 = (
        json.loads((out / n).read_text()) for n in (EMU_JSON, "llama_config/config.json", "t5-base/config.json")
    )
    assert emu.keys() == {"embed_dim", "vision_cfg", "multimodal_cfg", "vladapter_cfg"}
    assert emu["embed_dim"] == 10
    assert emu["vladapter_cfg"]["n_causal"] == 3
    assert llama["vocab_size"] == tokenizer[1]
    assert (t5["num_layers"], t5["num_decoder_layers"], t5["relative_attention_num_buckets"]) == (2, 2, 16)
    (out / "config.json").unlink()
    shutil.rmtree(tmp_path / "model")
    again = prepare_import([out])
    assert again.config == config
    code = tmp_path / "code" / "models"
    code.mkdir(parents=True)
    for name in (EMU_JSON, "llama_config"):
        shutil.move(out / name, code / name)
    shutil.move(out / "t5-base", tmp_path / "code" / "t5-base")
    found = prepare_import([out / "model.safetensors"], config=str(code / EMU_JSON), tokenizer=tokenizer[0])
    assert found.config == config


def test_the_published_file_describes_the_published_sizes(tmp_path):
    values = {
        "embed_dim": 1024,
        "vision_cfg": {"image_size": 224, "layers": 40, "width": 1408, "head_width": 88, "mlp_ratio": 4.3637,
                       "patch_size": 14, "eva_model_name": "eva-clip-g-14-x", "drop_path_rate": 0, "xattn": True,
                       "freeze": False},
        "multimodal_cfg": {"name": "llama-13B", "xattn": True, "n_causal": 32, "freeze": False},
        "vladapter_cfg": {"name": "cformer", "n_causal": 32},
    }  # fmt: skip
    (tmp_path / "Emu-14B.json").write_text(json.dumps(values))
    assert read_emu_config(tmp_path / "Emu-14B.json") == emu_14b()
    assert read_emu_config(tmp_path / "Emu-14B.json", vocab_size=32006) == emu_14b(vocab_size=32006)
