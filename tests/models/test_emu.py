"""The complete model: cached and full passes agree; pixels, precision, adapters and axis names."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from emu_jax.layers.linear import LoraConfig
from emu_jax.models.emu import Emu
from emu_jax.models.llama import empty_cache
from emu_jax.models.presets import emu_tiny
from emu_jax.pixels import CLIP_MEAN, CLIP_STD
from emu_jax.sharding import axes
from emu_jax.sharding.specs import unbox

IMAGE = 203
CONFIG = emu_tiny(vocab_size=204)
TOKENS = jnp.asarray([[1, 5, 201, IMAGE, IMAGE, IMAGE, IMAGE, 202, 17, 30, 4, 2]])
PIXELS = np.random.default_rng(0).integers(0, 256, (1, 1, 32, 32, 3), dtype=np.uint8)


@functools.cache
def parameters(lora=None):
    model = Emu(dataclasses.replace(CONFIG, lora=lora), image_token_id=IMAGE)
    return model, jax.jit(lambda key: unbox(model.init(key, TOKENS, jnp.asarray(PIXELS)))["params"])(jax.random.key(0))


@functools.cache
def full_pass():
    model, params = parameters()
    return jax.jit(model.apply)({"params": params}, TOKENS, jnp.asarray(PIXELS))


def close(actual, expected, relative=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(np.asarray(expected)).max())


@pytest.mark.parametrize("padding", [0, 3])
def test_prefill_and_decode_steps_match_the_full_pass(padding):
    """Seven positions at once, then one at a time, in a left-padded row, match a pass without a cache."""
    model, params = parameters()
    length = TOKENS.shape[1]
    embeddings = jnp.pad(full_pass().input_embeddings, ((0, 0), (padding, 0), (0, 0)), constant_values=7.0)
    is_token = jnp.pad(jnp.ones((1, length), bool), ((0, 0), (padding, 0)))
    cache = empty_cache(CONFIG.decoder, batch=1, slots=padding + length + 2, dtype="float32")

    @jax.jit
    def extend(x, cache, is_token):
        return model.apply({"params": params}, x, cache, is_token=is_token, method="extend")

    states = []
    for start, stop in [(0, padding + 7)] + [(padding + i, padding + i + 1) for i in range(7, length)]:
        hidden, cache = extend(embeddings[:, start:stop], cache, is_token[:, start:stop])
        states.append(hidden)
    close(jnp.concatenate(states, axis=1)[:, padding:], full_pass().hidden)
    assert int(cache.index) == padding + length
    assert cache.positions.tolist() == [length]


def test_outputs_are_consistent():
    output = full_pass()
    _, params = parameters()
    close(output.input_embeddings[:, 3:7], output.visual_embeddings[:, 0])
    close(output.input_embeddings[:, :3], params["decoder"]["token_embedding"][np.array([[1, 5, 201]])])
    close(output.logits[..., :204], output.hidden @ params["lm_head"]["projection"]["kernel"][:, :204], 1e-4)
    close(output.visual_predictions, output.hidden @ params["regression_head"]["projection"]["kernel"], 1e-4)
    assert output.logits.shape[-1] == CONFIG.decoder.padded_vocab_size
    assert int(jnp.argmax(output.logits, axis=-1).max()) < 204


def test_uint8_pixels_are_normalized_and_float_pixels_are_not():
    model, params = parameters()
    normalized = (PIXELS / 255.0 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    features = jax.jit(lambda x: model.apply({"params": params}, x, method="image_features"))
    close(features(jnp.asarray(PIXELS[0])), features(jnp.asarray(normalized[0], jnp.float32)), 1e-4)


def test_later_tokens_do_not_change_earlier_positions():
    model, params = parameters()
    changed = TOKENS.at[0, 9].set(99)
    output = jax.jit(model.apply)({"params": params}, changed, jnp.asarray(PIXELS))
    np.testing.assert_array_equal(output.hidden[:, :9], full_pass().hidden[:, :9])
    assert not np.allclose(output.hidden[:, 9:], full_pass().hidden[:, 9:])


def test_visual_embedding_q_depends_only_on_queries_up_to_q():
    model, params = parameters()
    changed = jax.tree.map(lambda a: a, params)
    queries = params["causal_former"]["causal_queries"]
    changed["causal_former"] = params["causal_former"] | {"causal_queries": queries.at[2].add(1.0)}
    embed = jax.jit(lambda p: model.apply({"params": p}, jnp.asarray(PIXELS[0]), method="embed_images"))
    before, after = embed(params), embed(changed)
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert (np.abs(before - after)[:, 2:].max(axis=-1) > 1e-4).all()


def test_new_adapters_do_not_change_the_output():
    model, params = parameters(LoraConfig(rank=2))
    plain = traverse_util.flatten_dict(params, sep="/")
    assert sum("lora_" in path for path in plain) == 8
    base = traverse_util.unflatten_dict({p: a for p, a in plain.items() if "lora_" not in p}, sep="/")
    expected = jax.jit(parameters()[0].apply)({"params": base}, TOKENS, jnp.asarray(PIXELS))
    output = jax.jit(model.apply)({"params": params}, TOKENS, jnp.asarray(PIXELS))
    np.testing.assert_array_equal(output.hidden, expected.hidden)


def test_bfloat16_model_returns_float32_logits():
    model = Emu(dataclasses.replace(CONFIG, dtype="bfloat16"), image_token_id=IMAGE)
    _, params = parameters()
    output = jax.jit(model.apply)({"params": params}, TOKENS, jnp.asarray(PIXELS))
    assert output.hidden.dtype == jnp.bfloat16
    assert output.logits.dtype == jnp.float32
    difference = np.abs(np.asarray(output.hidden, np.float32) - full_pass().hidden).mean()
    assert difference < 0.05 * np.abs(np.asarray(full_pass().hidden)).mean()


@pytest.mark.parametrize("lora", [None, LoraConfig()])
def test_every_parameter_has_a_name_for_every_axis(lora):
    model = Emu(dataclasses.replace(CONFIG, lora=lora), image_token_id=IMAGE)
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, jnp.asarray(PIXELS))["params"])
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert len(leaves) > 40
    for leaf in leaves:
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim
        assert set(leaf.names) <= set(axes.PARAMETER_AXES)
        assert len(set(leaf.names)) == len(leaf.names)
