"""import-torch: complete and partial sources, and refused ones."""

import json
import socket

import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from emu_jax.__main__ import main
from emu_jax.convert.emu_config import read_config, to_llama_config
from emu_jax.convert.emu_table import emu_table
from emu_jax.convert.load import load_model
from emu_jax.data.tokenizer import train_tokenizer
from tests.convert.release import random_state, small_config, with_parts, write_release, write_state

LLAMA = ("decoder.lm.model.", "decoder.lm.lm_head.")


def flat(params):
    return {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}


def run(*words):
    return main(["import-torch", *map(str, words)])


@pytest.fixture
def source(tmp_path):
    config = small_config()
    return write_release(tmp_path / "source", config, random_state(config))


def assert_holds(destination, config, state):
    """Compare every parameter in `destination` with its tensors, layer by layer."""
    params = flat(load_model(destination).params)
    rows = emu_table(config)
    assert params.keys() == {row.path for row in rows}
    for row in rows:
        layers = [row.to_ours(state[name]) for name in row.names]
        expected = layers[0] if row.layers is None else np.stack(layers)
        np.testing.assert_array_equal(params[row.path], expected, err_msg=row.path)


def test_a_release_folder_is_imported(tmp_path, source, capsys):
    assert run(source, tmp_path / "model") == 0
    assert_holds(tmp_path / "model", small_config(), random_state(small_config()))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "fingerprints", "params", "unused"]
    printed = capsys.readouterr().out
    assert "visual.head.weight" in printed
    assert str(tmp_path / "model") in printed


def test_shards_are_imported_and_loaded_without_an_import(tmp_path):
    config = small_config()
    state = random_state(config)
    folder = write_release(tmp_path / "sharded", config, state, shard_bytes=20_000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    assert run(folder, tmp_path / "model") == 0
    assert_holds(tmp_path / "model", config, state)
    assert_holds(folder, config, state)  # load_model also reads the release's layout


def test_adapters_are_found_by_their_names(tmp_path):
    config = small_config(lora=True)
    state = random_state(config)
    folder = write_release(tmp_path / "instruct", config, state)
    assert run(folder, tmp_path / "model") == 0
    assert read_config(tmp_path / "model" / "config.json").lora.rank == 3
    renamed = {name.replace("decoder.lm.base_model.model.", "decoder.lm."): array for name, array in state.items()}
    assert_holds(tmp_path / "model", config, renamed)


def test_half_precision_is_preserved(tmp_path):
    config = small_config()
    state = random_state(config, dtype=ml_dtypes.bfloat16)
    assert run(write_release(tmp_path / "half", config, state), tmp_path / "model") == 0
    assert_holds(tmp_path / "model", config, state)
    parts = load_model(tmp_path / "model")
    assert {leaf.dtype.name for leaf in flat(parts.params).values()} == {"bfloat16"}
    assert parts.config.dtype == "bfloat16"
    assert load_model(tmp_path / "model", dtype="float32").params["visual_norm"]["scale"].dtype == np.float32


def test_a_llama_starts_a_new_emu(tmp_path, capsys):
    """The vocabulary grows by Emu's four tokens, whose rows are the mean of the others. The rest is initialized."""
    config = small_config()
    state = random_state(config)
    llama = {n.removeprefix("decoder.lm."): a for n, a in state.items() if n.startswith(LLAMA)}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        llama[name] = llama[name][:296]
    llama["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    write_state(tmp_path / "llama", llama)
    (tmp_path / "config.json").write_text((write_release(tmp_path / "c", config, {}) / "config.json").read_text())
    assert run(tmp_path / "llama", tmp_path / "model", "--config", tmp_path / "config.json") == 0
    params = flat(load_model(tmp_path / "model").params)
    table = params["decoder/token_embedding"]
    np.testing.assert_array_equal(table[:296], llama["model.embed_tokens.weight"])
    mean = np.broadcast_to(table[:296].mean(axis=0), (4, 20))
    np.testing.assert_allclose(table[296:300], mean, rtol=0, atol=1e-6)
    assert np.abs(table[300:]).max() == 0
    printed = capsys.readouterr().out
    assert "4 rows added" in printed
    assert "causal_former/causal_queries" in printed
    assert "decoder/blocks" not in printed
    assert params["vision_encoder/blocks/mlp/up/kernel"].std() > 0.1  # initialized, not zero
    layers = params["vision_encoder/blocks/mlp/up/kernel"]
    assert not np.array_equal(layers[0], layers[1])
    np.testing.assert_array_equal(params["visual_norm/scale"], np.ones(16))


def test_llama_and_eva_start_an_emu_with_larger_images(tmp_path, capsys):
    """An EVA checkpoint without the prefix `visual.`, and a LLaMA. Positions are interpolated to larger images."""
    config = with_parts(small_config(), vision={"width": 88, "num_heads": 1, "mlp_dim": 100})
    state = random_state(config)
    eva = {n.removeprefix("visual."): a for n, a in state.items() if n.startswith("visual.")}
    eva["logit_scale"] = np.ones(1, np.float32)
    write_state(tmp_path / "eva", eva)
    write_state(tmp_path / "llama", {n.removeprefix("decoder.lm."): a for n, a in state.items() if n.startswith(LLAMA)})
    llama_config = to_llama_config(config.decoder, vocab_size=config.decoder.vocab_size)
    (tmp_path / "llama" / "config.json").write_text(json.dumps(llama_config))
    small_former = tmp_path / "sizes.json"  # the published causal former is too large for a test
    larger = with_parts(config, vision={"image_size": 16})
    small_former.write_text((write_release(tmp_path / "c", larger, {}) / "config.json").read_text())
    words = (tmp_path / "eva" / "model.safetensors", tmp_path / "llama", tmp_path / "model", "--config", small_former)
    assert run(*words) == 0
    params = flat(load_model(tmp_path / "model").params)
    assert params["vision_encoder/position_embedding"].shape == (17, 88)
    np.testing.assert_array_equal(params["vision_encoder/position_embedding"][0], state["visual.pos_embed"][0, 0])
    np.testing.assert_array_equal(params["decoder/final_norm/scale"], state["decoder.lm.model.norm.weight"])
    assert "positions interpolated from 4 to 16 patches" in capsys.readouterr().out
    assert (tmp_path / "model" / "unused").is_dir()


def test_the_image_size_of_a_release_can_be_changed(tmp_path, source):
    assert run(source, tmp_path / "model", "--image-size", 24) == 0
    parts = load_model(tmp_path / "model")
    assert parts.config.vision.image_size == 24
    assert parts.params["vision_encoder"]["position_embedding"].shape == (37, 16)


def test_files_of_a_killed_import_are_removed(tmp_path, source):
    leftover = tmp_path / f".model.{socket.gethostname()[:60]}.999999999.abc.tmp"
    leftover.mkdir()
    (leftover / "params").write_text("half")
    assert run(source, tmp_path / "model") == 0
    assert not leftover.exists()


def test_a_model_is_not_overwritten(tmp_path, source, capsys):
    assert run(source, tmp_path / "model") == 0
    assert run(source, tmp_path / "model") == 2
    assert "contains a model already" in capsys.readouterr().err


def drop_one(state):
    del state["cformer.projection.bias"]


def add_one(state):
    state["visual.blocks.0.attn.k_bias"] = np.zeros(16, np.float32)


def reshape_one(state):
    state["decoder.lm.model.layers.1.mlp.up_proj.weight"] = np.zeros((44, 21), np.float32)


def reshape_unused(state):
    state["visual.norm.bias"] = np.zeros(17, np.float32)


def add_nan(state):
    state["decoder.lm.model.layers.1.self_attn.q_proj.weight"][3, 4] = np.nan


def add_infinity_to_unused(state):
    state["visual.head.weight"][3, 4] = np.inf


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_one, "1 missing (cformer.projection.bias)"),
        (add_one, "1 unknown (visual.blocks.0.attn.k_bias)"),
        (reshape_one, "decoder.lm.model.layers.1.mlp.up_proj.weight is [44, 21], expected [44, 20]"),
        (reshape_unused, "visual.norm.bias is [17], expected [16]"),
        (add_nan, "decoder.lm.model.layers.1.self_attn.q_proj.weight in"),
        (add_infinity_to_unused, "has 1 NaN or infinite"),
    ],
)
def test_invalid_checkpoints_are_refused_in_one_line(tmp_path, damage, message, capsys):
    state = random_state(small_config())
    damage(state)
    folder = write_release(tmp_path / "source", small_config(), state)
    assert run(folder, tmp_path / "model") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ")
    assert message in error[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_several_problems_are_all_reported(tmp_path, capsys):
    state = random_state(small_config())
    for damage in (drop_one, add_one, reshape_one):
        damage(state)
    assert run(write_release(tmp_path / "source", small_config(), state), tmp_path / "model") == 2
    error = capsys.readouterr().err
    assert "1 missing" in error
    assert "1 unknown" in error
    assert "1 of a different shape" in error


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 4096])
def test_files_that_are_not_checkpoints_are_refused(tmp_path, content, capsys):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert run(tmp_path / "model.safetensors", tmp_path / "model") == 2
    assert "not a complete safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_truncated_checkpoint_is_refused(tmp_path, source, capsys):
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert run(source, tmp_path / "model") == 2
    assert "not a complete safetensors file" in capsys.readouterr().err


def test_the_error_on_unknown_sizes_names_the_config_option(tmp_path, source, capsys):
    (source / "config.json").unlink()
    assert run(source, tmp_path / "model") == 2
    assert "--config" in capsys.readouterr().err


def test_a_tokenizer_of_another_size_is_refused(tmp_path, source, capsys):
    tokenizer = train_tokenizer(
        ["a small red circle", "a large blue square"], source / "tokenizer.model", vocab_size=280
    )
    assert run(source, tmp_path / "model") == 2
    assert str(tokenizer.vocab_size) in capsys.readouterr().err
