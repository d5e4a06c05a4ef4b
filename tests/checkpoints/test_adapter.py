"""Adapters: what tuning changed, saved without the base, loaded next to it, merged and taken out again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import emu_jax
from emu_jax.checkpoints.adapter import base_fingerprint, make_adapter, read_adapter, save_adapter
from emu_jax.checkpoints.lora import merge_adapters, split_adapters, unmerge_adapters
from emu_jax.checkpoints.model_directory import boxed_shapes, read_model, save_model
from emu_jax.cli.loading import parse_adapter
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.errors import UserError
from emu_jax.generation.api import load_adapters
from emu_jax.layers.linear import LoraConfig
from emu_jax.models.emu import Emu
from emu_jax.sharding.specs import unbox
from emu_jax.training.partition import flatten, unflatten
from tests.convert.release import small_config, with_parts

EVERYWHERE = LoraConfig(rank=2, alpha=6.0, targets=("attention", "mlp", "projection"))


def random_params(config, *, seed):
    shapes = flatten(unbox(boxed_shapes(config)))
    rng = np.random.default_rng(seed)
    return unflatten({path: rng.normal(0, 0.1, leaf.shape).astype(np.float32) for path, leaf in shapes.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Directories of a base of n + 4 tokens, two models tuned from it, and another base."""
    root = tmp_path_factory.mktemp("adapters")
    tokenizer = train_tokenizer([f"number {n} and on" for n in range(99)], root / "t.model", vocab_size=290)
    base_config = with_parts(small_config(), decoder={"vocab_size": tokenizer.vocab_size})
    tuned_config = with_parts(base_config, decoder={"vocab_size": tokenizer.vocab_size + 2})
    tuned_config = dataclasses.replace(tuned_config, lora=EVERYWHERE)
    base = random_params(base_config, seed=0)
    save_model(root / "base", base_config, base, tokenizer=root / "t.model")
    save_model(root / "other", base_config, random_params(base_config, seed=9), tokenizer=root / "t.model")
    for name, seed in (("one", 1), ("two", 2)):
        new = flatten(random_params(tuned_config, seed=seed))
        params = {path: flatten(base).get(path, array) for path, array in new.items()}
        known = base_config.decoder.vocab_size
        params["decoder/token_embedding"] = new["decoder/token_embedding"].copy()
        params["decoder/token_embedding"][:known] = flatten(base)["decoder/token_embedding"][:known]
        params["decoder/token_embedding"][known + 2 :] = 0
        params["lm_head/projection/kernel"] = new["lm_head/projection/kernel"].copy()
        params["lm_head/projection/kernel"][:, :known] = flatten(base)["lm_head/projection/kernel"][:, :known]
        params["lm_head/projection/kernel"][:, known + 2 :] = 0
        params["causal_former/projection/bias"] = new["causal_former/projection/bias"]  # tuned completely
        save_model(root / name, tuned_config, unflatten(params), tokenizer=root / "t.model")
        save_adapter(root / f"adapter_{name}", make_adapter(root / name, root / "base"))
    return root


def outputs(parts):
    size = parts.config.vision.image_size
    images = jax.random.normal(jax.random.key(0), (1, 1, size, size, 3))
    tokens = jnp.array([[1, 5, 9, 293, 293, 293, 7, 8]])
    return jax.jit(Emu(parts.config, image_token_id=293).apply)({"params": parts.params}, tokens, images).logits


def test_an_adapter_holds_only_what_differs_and_gives_back_the_tuned_model(folder):
    adapter = read_adapter(folder / "adapter_one")
    known, tuned = adapter.known_tokens, read_model(folder / "one")
    others = {path: array.shape for path, array in adapter.arrays.items() if "/lora_" not in path}
    width = tuned.config.decoder.width
    assert others == {
        "decoder/token_embedding": (2, width),
        "lm_head/projection/kernel": (width, 2),
        "causal_former/projection/bias": (width,),
    }
    assert adapter.vocab_size == known + 2
    assert "2 new tokens" in adapter.summary()
    assert "causal_former/projection/bias" in adapter.summary()
    emu = emu_jax.load(folder / "base", adapter=folder / "adapter_one")
    assert emu.config == tuned.config
    assert emu.tokenizer.instruct
    jax.tree.map(np.testing.assert_array_equal, emu.params, tuned.params)


def test_several_adapters_share_the_arrays_of_one_base(folder):
    names = ("one", "two")
    emus = load_adapters(folder / "base", {name: folder / f"adapter_{name}" for name in names})
    assert list(emus) == [None, *names]
    path = "decoder/blocks/mlp/gate/kernel"
    assert all(flatten(emus[name].params)[path] is flatten(emus[None].params)[path] for name in names)
    for name in names:
        jax.tree.map(np.testing.assert_array_equal, emus[name].params, read_model(folder / name).params)


def test_another_base_is_refused(folder):
    with pytest.raises(UserError, match="trained on a base with the fingerprint"):
        emu_jax.load(folder / "other", adapter=folder / "adapter_one")
    assert base_fingerprint(folder / "base") != base_fingerprint(folder / "other")


@pytest.mark.parametrize("damage", ["description", "weights", "missing"])
def test_damaged_adapters_are_refused(folder, tmp_path, damage):
    save_adapter(tmp_path / "a", read_adapter(folder / "adapter_one"))
    if damage == "description":
        (tmp_path / "a" / "adapter.json").write_text("[]")
    elif damage == "weights":
        file = tmp_path / "a" / "adapter.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
    else:
        (tmp_path / "a" / "adapter.safetensors").unlink()
    with pytest.raises(UserError):
        read_adapter(tmp_path / "a")


def test_merge_and_unmerge_are_exact_to_rounding(folder):
    tuned = read_model(folder / "one")
    layers = {path.rpartition("/")[0] for path in flatten(tuned.params) if "/lora_a" in path}
    for part in ("vision_encoder/blocks/attention/qkv", "causal_former/blocks/cross_attention/value",
                 "vision_encoder/blocks/mlp/down", "decoder/blocks/mlp/down", "causal_former/projection"):  # fmt: skip
        assert part in layers
    scale = EVERYWHERE.scale
    merged = merge_adapters(tuned.params, scale=scale)
    plain = dataclasses.replace(tuned, config=dataclasses.replace(tuned.config, lora=None), params=merged)
    adapted, expected = np.asarray(outputs(tuned)), np.asarray(outputs(plain))
    real = expected > -1e29
    np.testing.assert_allclose(adapted[real], expected[real], rtol=0, atol=1e-5 * np.abs(expected[real]).max())
    without = dataclasses.replace(plain, params=split_adapters(tuned.params)[0])
    assert np.abs(np.asarray(outputs(without))[real] - expected[real]).max() > 0.01
    again = unmerge_adapters(merged, split_adapters(tuned.params)[1], scale=scale)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), again, tuned.params)


def test_names_of_adapters():
    assert parse_adapter("medical=runs/x")[0] == "medical"
    assert parse_adapter("adapters/maps")[0] == "maps"
