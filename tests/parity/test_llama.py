"""The decoder against LlamaForCausalLM of transformers, with imported and exported weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.convert.emu_config import to_release_config
from emu_jax.convert.import_torch import prepare_import
from emu_jax.convert.load import load_model
from emu_jax.models.emu import Emu
from tests.convert.release import random_state, small_config, with_parts, write_release

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RELATIVE = 1e-5  # of the largest value


def assert_close(actual, expected):
    expected = expected.detach().numpy() if hasattr(expected, "detach") else expected
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


def random_llama(config, vocab_size):
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=config.width,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_length,
            rms_norm_eps=config.norm_eps,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    return theirs


@pytest.mark.parametrize(
    ("sizes", "length"),
    [
        ({"width": 16, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 44, "num_layers": 2}, 7),
        ({"width": 48, "num_heads": 4, "num_kv_heads": 4, "mlp_dim": 100, "num_layers": 3}, 33),
        ({"width": 40, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 64, "num_layers": 1}, 12),
    ],
)
def test_imported_llama_has_the_same_logits(tmp_path, sizes, length):
    config = with_parts(small_config(), decoder=sizes)
    theirs = random_llama(config.decoder, vocab_size=296)
    theirs.save_pretrained(tmp_path / "llama")
    (tmp_path / "sizes.json").write_text(json.dumps(to_release_config(config)))
    prepare_import([tmp_path / "llama"], config=str(tmp_path / "sizes.json")).write(tmp_path / "model")
    parts = load_model(tmp_path / "model")
    tokens = np.random.default_rng(0).integers(0, 296, (2, length), dtype=np.int32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens.astype(np.int64)), output_hidden_states=True)
    output = jax.jit(Emu(parts.config, image_token_id=299).apply)({"params": parts.params}, jnp.asarray(tokens))
    assert_close(output.hidden, expected.hidden_states[-1])
    assert_close(output.logits[..., :296], expected.logits)


def test_left_padding_matches_the_attention_mask_of_transformers(tmp_path):
    """Left-padded rows, as transformers uses them to generate, match segment ids and positions."""
    config = small_config()
    theirs = random_llama(config.decoder, vocab_size=300)
    params = _params_of(theirs, config, tmp_path)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 290, (2, 9), dtype=np.int32)
    mask = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9], np.int32)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(tokens.astype(np.int64)),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            position_ids=torch.from_numpy(positions.astype(np.int64)),
        ).logits.numpy()
    output = jax.jit(Emu(config, image_token_id=299).apply)(
        {"params": params}, jnp.asarray(tokens), positions=jnp.asarray(positions), segment_ids=jnp.asarray(mask)
    )
    valid = mask.astype(bool)
    assert_close(np.asarray(output.logits)[..., :300][valid], expected[valid])


def _params_of(theirs, config, tmp_path):
    state = random_state(config)
    for name, parameter in theirs.state_dict().items():
        state["decoder.lm." + name] = parameter.numpy()
    return load_model(write_release(tmp_path / "release", config, state)).params


@pytest.mark.parametrize("layers", [1, 3])
def test_huggingface_export_opens_with_from_pretrained(tmp_path, layers):
    from emu_jax.convert.export_torch import Layout, prepare_export

    config = with_parts(small_config(), decoder={"num_layers": layers})
    source = write_release(tmp_path / "release", config, random_state(config))
    prepare_import([source]).write(tmp_path / "model")
    prepare_export(tmp_path / "model").write(tmp_path / "out", layout=Layout.HUGGINGFACE, shard_bytes=30_000)
    theirs, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    parts = load_model(tmp_path / "model")
    tokens = np.random.default_rng(2).integers(0, 290, (1, 20), dtype=np.int32)
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(tokens.astype(np.int64))).logits
    output = jax.jit(Emu(parts.config, image_token_id=299).apply)({"params": parts.params}, jnp.asarray(tokens))
    assert_close(output.logits[..., :300], expected)
