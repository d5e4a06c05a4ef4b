"""The sizes of an imported Emu: from a config, the published ones, or from the tensor shapes."""

import dataclasses
import json

import numpy as np
import pytest

from emu_jax.convert.emu_config import to_llama_config
from emu_jax.convert.emu_table import DECODER
from emu_jax.convert.import_torch import prepare_import
from emu_jax.errors import UserError
from emu_jax.layers.linear import LoraConfig
from emu_jax.models.config import DecoderConfig, VisionConfig
from emu_jax.models.presets import emu_14b
from tests.convert.release import released_shapes, small_config, write_sparse

PUBLISHED = {"dtype": "bfloat16", "param_dtype": "float16"}  # half-precision files compute in bfloat16
LLAMA = DecoderConfig(vocab_size=1000, width=64, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=96, norm_eps=1e-5)
EVA = VisionConfig(image_size=42, patch_size=14, width=176, num_layers=3, num_heads=2, mlp_dim=300)


def write_llama(folder):
    config = dataclasses.replace(small_config(), decoder=LLAMA)
    head = DECODER + "stu_regress_head"
    names = {n: s for n, s in released_shapes(config).items() if n.startswith(DECODER) and not n.startswith(head)}
    write_sparse(folder / "model.safetensors", {n.removeprefix(DECODER): s for n, s in names.items()})
    (folder / "config.json").write_text(json.dumps(to_llama_config(LLAMA, vocab_size=LLAMA.vocab_size)))
    return folder


def write_eva(file):
    config = dataclasses.replace(small_config(), vision=EVA)
    write_sparse(file, {n: s for n, s in released_shapes(config).items() if n.startswith("visual.")})
    return file


@pytest.mark.parametrize("lora", [None, LoraConfig()])
def test_a_bare_file_of_the_14b_needs_no_config(tmp_path, lora):
    """Only the header is read. The file is sparse, of 28 GB."""
    config = dataclasses.replace(emu_14b(vocab_size=32004 if lora is None else 32006), lora=lora)
    write_sparse(tmp_path / "Emu.safetensors", released_shapes(config), dtype=np.float16)
    prepared = prepare_import([tmp_path / "Emu.safetensors"])
    assert prepared.config == dataclasses.replace(config, **PUBLISHED)
    assert prepared.match.initialized == ()
    assert len(prepared.match.unused) == 5
    assert 28.3e9 < prepared.nbytes < 28.5e9


def test_the_sizes_of_llama_and_eva_are_found(tmp_path):
    llama, eva = write_llama(tmp_path / "llama"), write_eva(tmp_path / "eva" / "eva.safetensors")
    prepared = prepare_import([llama, eva])
    assert prepared.config.decoder == dataclasses.replace(LLAMA, vocab_size=1004)
    assert prepared.config.vision == EVA
    assert prepared.config.causal_former == emu_14b().causal_former
    assert {path.split("/")[0] for path in prepared.match.initialized} == {
        "visual_norm",
        "causal_former",
        "regression_head",
    }
    assert [note for note in prepared.match.notes if "4 rows added" in note]


def test_eva_without_a_llama_gets_a_new_13b_decoder(tmp_path):
    prepared = prepare_import([write_eva(tmp_path / "eva.safetensors")])
    assert prepared.config.decoder == emu_14b().decoder
    assert "decoder/blocks/mlp/up/kernel" in prepared.match.initialized
    assert "vision_encoder/blocks/mlp/up/kernel" not in prepared.match.initialized


def test_an_unknown_number_of_heads_requires_a_config(tmp_path):
    config = dataclasses.replace(small_config(), vision=dataclasses.replace(EVA, width=180))
    file = tmp_path / "eva.safetensors"
    write_sparse(file, {n: s for n, s in released_shapes(config).items() if n.startswith("visual.")})
    with pytest.raises(UserError, match="--config"):
        prepare_import([file])


def test_an_incomplete_vision_encoder_is_refused(tmp_path):
    shapes = {n: s for n, s in released_shapes(emu_14b()).items() if n.startswith("visual.")}
    write_sparse(tmp_path / "eva.safetensors", {n: s for n, s in shapes.items() if "blocks.39." not in n})
    with pytest.raises(UserError, match="13 missing"):
        prepare_import([tmp_path / "eva.safetensors"], config="emu_14b")


def test_two_sources_of_one_tensor_are_refused(tmp_path):
    eva = write_eva(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="Name one of them"):
        prepare_import([eva, write_eva(tmp_path / "b.safetensors")])


def test_a_source_without_tensors_of_an_emu_is_refused(tmp_path):
    write_sparse(tmp_path / "clip.safetensors", {"text.token_embedding.weight": (3, 4), "logit_scale": ()})
    with pytest.raises(UserError, match="no tensor of an Emu"):
        prepare_import([tmp_path / "clip.safetensors"])


@pytest.mark.parametrize("image_size", [225, 0, -14])
def test_the_image_size_must_be_a_multiple_of_the_patch_size(tmp_path, image_size):
    with pytest.raises(UserError, match="patch size 14"):
        prepare_import([write_eva(tmp_path / "eva.safetensors")], image_size=image_size)


@pytest.mark.parametrize("damage", [{"hidden_size": None}, {"num_attention_heads": 0}, {"rms_norm_eps": "x"}])
def test_an_invalid_llama_config_is_refused(tmp_path, damage):
    folder = write_llama(tmp_path / "llama")
    values = json.loads((folder / "config.json").read_text()) | damage
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"llama/config\.json"):
        prepare_import([folder])
