"""Adapters in peft's folder: names, settings, and a round trip without a changed bit."""

import dataclasses
import json

import numpy as np
import pytest

from emu_jax.checkpoints.adapter import make_adapter, read_adapter, save_adapter
from emu_jax.checkpoints.model_directory import boxed_shapes, save_model
from emu_jax.cli.export_adapter import main
from emu_jax.convert.peft_adapter import read_peft_adapter, save_peft_adapter
from emu_jax.errors import UserError
from emu_jax.io.safetensors_files import open_safetensors, write_safetensors
from emu_jax.io.tensors import tensor_of
from emu_jax.layers.linear import DECODER_ATTENTION, LoraConfig
from emu_jax.sharding.specs import unbox
from emu_jax.training.partition import flatten, unflatten
from tests.convert.release import small_config, with_parts

EVERYWHERE = ("attention", "mlp", "projection")
TABLES = {"decoder/token_embedding": 0, "lm_head/projection/kernel": 1}
NEW_TOKENS = 2


def random_params(config, *, seed):
    """Return parameters whose rows beyond the vocabulary are zero."""
    rng = np.random.default_rng(seed)
    params = {
        path: rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        for path, leaf in flatten(unbox(boxed_shapes(config))).items()
    }
    for path, axis in TABLES.items():
        np.moveaxis(params[path], axis, 0)[config.decoder.vocab_size :] = 0
    return params


def write_adapter(root, lora, *, new_tokens=0, connector=False):
    """Write a base, a model tuned from it and its adapter. Return the adapter."""
    base_config = small_config()
    known = base_config.decoder.vocab_size
    config = dataclasses.replace(with_parts(base_config, decoder={"vocab_size": known + new_tokens}), lora=lora)
    base, tuned = random_params(base_config, seed=0), random_params(config, seed=1)
    if not (root / "base").exists():
        save_model(root / "base", base_config, unflatten(base))
    params = {path: base.get(path, array) for path, array in tuned.items()}
    for path, axis in TABLES.items() if new_tokens else ():
        params[path] = tuned[path]
        np.moveaxis(params[path], axis, 0)[:known] = np.moveaxis(base[path], axis, 0)[:known]
    if connector:
        params["causal_former/projection/kernel"] = tuned["causal_former/projection/kernel"]
    save_model(root / "tuned", config, unflatten(params))
    save_adapter(root / "adapter", make_adapter(root / "tuned", root / "base"))
    return read_adapter(root / "adapter")


def saved_tensors(folder):
    return {tensor.name: tensor for tensor in open_safetensors(folder / "adapter_model.safetensors")}


@pytest.mark.parametrize("new_tokens", [0, NEW_TOKENS])
@pytest.mark.parametrize("targets", [DECODER_ATTENTION, EVERYWHERE], ids=["decoder", "everywhere"])
def test_a_round_trip_changes_no_bit(tmp_path, targets, new_tokens):
    lora = LoraConfig(rank=3, alpha=7.0, dropout=0.1, targets=targets)
    adapter = write_adapter(tmp_path, lora, new_tokens=new_tokens, connector=targets is EVERYWHERE)
    main([str(tmp_path / "tuned"), str(tmp_path / "peft"), "--base", str(tmp_path / "base"), "--format", "peft"])
    main([str(tmp_path / "peft"), str(tmp_path / "back"), "--base", str(tmp_path / "base")])
    back = read_adapter(tmp_path / "back")
    assert (back.base, back.vocab_size, back.known_tokens) == (adapter.base, adapter.vocab_size, adapter.known_tokens)
    assert (back.lora.rank, back.lora.alpha, back.lora.dropout) == (3, 7.0, 0.1)
    assert back.arrays.keys() == adapter.arrays.keys()
    for path, array in adapter.arrays.items():
        assert back.arrays[path].dtype == array.dtype
        np.testing.assert_array_equal(back.arrays[path], array)


def test_names_and_settings_are_those_of_peft(tmp_path):
    adapter = write_adapter(tmp_path, LoraConfig(rank=3, alpha=7.0), new_tokens=NEW_TOKENS)
    save_peft_adapter(tmp_path / "peft", adapter, base=tmp_path / "base")
    tensors = saved_tensors(tmp_path / "peft")
    width = small_config().decoder.width
    layers = [
        f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{side}.weight"
        for layer in range(2)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        for side in "AB"
    ]
    tables = ["base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"]
    assert sorted(tensors) == sorted(layers + tables)
    assert tensors[layers[0]].shape == (3, width)
    assert tensors[tables[0]].shape == (adapter.vocab_size, width)
    values = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert values["r"] == 3
    assert values["lora_alpha"] == 7
    assert values["target_modules"] == [f"self_attn.{name}" for name in ("k_proj", "o_proj", "q_proj", "v_proj")]
    assert values["modules_to_save"] == ["lm_head", "model.embed_tokens"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "peft_type LORA"),
        ({"r": 5}, "r = 5"),
        ({"lora_alpha": "x"}, "lora_alpha"),
    ],
)
def test_settings_that_are_not_supported_are_refused(tmp_path, change, message):
    save_peft_adapter(tmp_path / "p", write_adapter(tmp_path, LoraConfig(rank=3)), base=tmp_path / "base")
    file = tmp_path / "p" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_peft_adapter(tmp_path / "p", base=tmp_path / "base")


@pytest.mark.parametrize("damage", ["missing layer", "unknown name", "no weights"])
def test_incomplete_folders_are_refused(tmp_path, damage):
    save_peft_adapter(tmp_path / "p", write_adapter(tmp_path, LoraConfig(rank=3)), base=tmp_path / "base")
    arrays = {name: tensor.read() for name, tensor in saved_tensors(tmp_path / "p").items()}
    first = next(iter(arrays))
    (tmp_path / "p" / "adapter_model.safetensors").unlink()
    if damage == "missing layer":
        del arrays[first]
    elif damage == "unknown name":
        arrays["model.x.weight"] = arrays[first]
    if damage != "no weights":
        write_safetensors(tmp_path / "p", [tensor_of(n, a) for n, a in arrays.items()], stem="adapter_model")
    with pytest.raises(UserError):
        read_peft_adapter(tmp_path / "p", base=tmp_path / "base")


def test_rank_stabilized_scale_is_converted(tmp_path):
    adapter = write_adapter(tmp_path, LoraConfig(rank=3, alpha=7.0))
    save_peft_adapter(tmp_path / "p", adapter, base=tmp_path / "base")
    file = tmp_path / "p" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_rslora": True}))
    assert read_peft_adapter(tmp_path / "p", base=tmp_path / "base").lora.scale == pytest.approx(7 / 3**0.5)
