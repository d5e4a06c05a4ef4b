"""A warm start with a larger vocabulary: new tokens start as the mean of the known ones, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.checkpoints.model_directory import boxed_shapes, save_model
from emu_jax.checkpoints.params import save_params, warm_start
from emu_jax.checkpoints.vocabulary import grow
from emu_jax.convert.load import load_model
from emu_jax.models.emu import Emu
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.sharding.specs import shardings, unbox
from emu_jax.training.partition import flatten
from tests.convert.release import random_state, small_config, with_parts, write_release

KNOWN = 300


@pytest.fixture
def model(tmp_path):
    """A model of 300 tokens; their tables have 384 rows."""
    params = load_model(write_release(tmp_path / "release", small_config(), random_state(small_config()))).params
    save_model(tmp_path / "model", small_config(), params)
    return tmp_path / "model"


def zeros(config, *, mesh=None):
    boxed = boxed_shapes(config)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), unbox(boxed))
    return params if mesh is None else jax.device_put(params, shardings(boxed, mesh))


@pytest.mark.parametrize("vocab_size", [302, 390])
def test_new_tokens_start_as_the_mean_of_the_others(model, vocab_size):
    """Within the padding (384 rows) and beyond it (512 rows), on a mesh."""
    saved = load_model(model).params
    larger = with_parts(small_config(lora=True), decoder={"vocab_size": vocab_size})
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    own = zeros(larger, mesh=mesh)
    params, report = warm_start(model, own, vocab_size=vocab_size)
    expected = flatten(own)
    assert all(array.sharding == expected[path].sharding for path, array in flatten(params).items())
    for table, old in (
        (params["decoder"]["token_embedding"], saved["decoder"]["token_embedding"]),
        (params["lm_head"]["projection"]["kernel"].T, saved["lm_head"]["projection"]["kernel"].T),
    ):
        table, old = np.asarray(table), np.asarray(old)[:KNOWN]
        assert table.shape[0] == larger.decoder.padded_vocab_size
        np.testing.assert_array_equal(table[:KNOWN], old)
        mean = np.broadcast_to(old.mean(axis=0), (vocab_size - KNOWN, old.shape[1]))
        np.testing.assert_allclose(table[KNOWN:vocab_size], mean, rtol=0, atol=1e-6)
        assert not table[vocab_size:].any()
    assert len(report.grown) == 2
    assert not report.other_shape
    assert {name.rsplit("/", 1)[1] for name in report.missing} == {"lora_a", "lora_b"}
    assert "from 300 to" in report.summary()


def test_tables_of_the_same_vocabulary_are_unchanged(model):
    params, report = warm_start(model, zeros(small_config()), vocab_size=KNOWN)
    jax.tree.map(np.testing.assert_array_equal, params, load_model(model).params)
    assert report.grown == ()


def test_the_config_of_a_run_is_found_for_its_steps(tmp_path, model):
    step = tmp_path / "run" / "checkpoints" / "7"
    save_params(step, load_model(model).params)
    (tmp_path / "run" / "config.json").write_bytes((model / "config.json").read_bytes())
    larger = with_parts(small_config(), decoder={"vocab_size": 302})
    params, _ = warm_start(step, zeros(larger), vocab_size=302)
    assert np.abs(params["decoder"]["token_embedding"][301]).max() > 0


def test_the_example_in_the_docstring():
    grown = grow(jnp.array([[1.0, 1], [3, 5], [0, 0]]), axis=0, known=2, vocab_size=3, rows=4)
    assert grown.tolist() == [[1, 1], [3, 5], [2, 3], [0, 0]]


def test_new_tokens_start_from_named_ones_and_no_logit_of_the_others_moves(model):
    sources = {300: (17,), 301: (23, 24)}
    larger = with_parts(small_config(), decoder={"vocab_size": 302})
    params, _ = warm_start(model, zeros(larger, mesh=make_mesh(MeshConfig(1, 1, 1), devices=jax.devices()[:1])),
                           vocab_size=302, token_sources=sources)  # fmt: skip
    saved = load_model(model).params
    table, head = (
        np.asarray(params["decoder"]["token_embedding"]),
        np.asarray(params["lm_head"]["projection"]["kernel"]),
    )
    np.testing.assert_array_equal(table[300], table[17])
    np.testing.assert_allclose(table[301], (table[23] + table[24]) / 2, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(head[:, 300], head[:, 17])
    tokens = jnp.arange(12, dtype=jnp.int32)[None]
    logits = [
        np.asarray(Emu(config, image_token_id=299).apply({"params": tree}, tokens).logits)[..., :300]
        for config, tree in ((small_config(), saved), (larger, params))
    ]
    np.testing.assert_array_equal(*logits)
