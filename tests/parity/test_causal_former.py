"""The causal former against transformers' T5 decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.convert.load import load_model
from emu_jax.layers.positions import relative_buckets
from emu_jax.models.emu import Emu
from tests.convert.release import random_state, small_config, with_parts, write_release

torch = pytest.importorskip("torch")
t5 = pytest.importorskip("transformers.models.t5.modeling_t5")

RELATIVE = 1e-5  # of the largest value


@pytest.mark.parametrize(
    ("sizes", "features"),
    [
        ({"num_image_tokens": 3, "width": 24, "num_heads": 2, "head_dim": 10, "mlp_dim": 40, "num_layers": 2}, 5),
        ({"num_image_tokens": 40, "width": 32, "num_heads": 4, "head_dim": 8, "mlp_dim": 64, "num_layers": 3}, 17),
    ],
)
def test_causal_former_matches_a_t5_decoder_over_learned_queries(tmp_path, sizes, features):
    config = with_parts(small_config(), causal_former=sizes)
    state = {name: array * 0.3 for name, array in random_state(config).items()}
    params = load_model(write_release(tmp_path / "release", config, state)).params["causal_former"]
    former, width = config.causal_former, config.vision.width
    theirs = t5.T5Stack(
        t5.T5Config(
            is_decoder=True, use_cache=False, d_model=former.width, d_kv=former.head_dim, d_ff=former.mlp_dim,
            num_layers=former.num_layers, num_heads=former.num_heads, vocab_size=8, feed_forward_proj="relu",
            relative_attention_num_buckets=former.relpos_buckets, is_encoder_decoder=False,
            relative_attention_max_distance=former.relpos_max_distance,
        )
    ).eval()  # fmt: skip
    for block in theirs.block:  # in the release, cross-attention keys and values have the width of the vision encoder
        attention = block.layer[1].EncDecAttention
        attention.k = torch.nn.Linear(width, former.num_heads * former.head_dim, bias=False)
        attention.v = torch.nn.Linear(width, former.num_heads * former.head_dim, bias=False)
    prefix = "cformer.cformer."
    loaded = {n.removeprefix(prefix): torch.from_numpy(a) for n, a in state.items() if n.startswith(prefix)}
    loaded.pop("embed_tokens.weight")
    missing = theirs.load_state_dict(loaded, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"embed_tokens.weight"}

    image_features = np.random.default_rng(0).standard_normal((2, features, width), np.float32)
    queries = torch.from_numpy(state["cformer.causal_tokens"]).expand(2, -1, -1)
    with torch.no_grad():
        states = theirs(inputs_embeds=queries, encoder_hidden_states=torch.from_numpy(image_features))
        expected = torch.nn.functional.linear(
            states.last_hidden_state,
            torch.from_numpy(state["cformer.projection.weight"]),
            torch.from_numpy(state["cformer.projection.bias"]),
        ).numpy()

    def causal_former(params, x):
        return Emu(config, image_token_id=299).apply(
            {"params": {"causal_former": params}}, x, method=lambda model, x: model.causal_former(x)
        )

    actual = jax.jit(causal_former)(params, jnp.asarray(image_features))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize(("buckets", "max_distance", "length"), [(32, 128, 300), (8, 20, 40), (4, 8, 12)])
def test_relative_buckets(buckets, max_distance, length):
    relative = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    expected = t5.T5Attention._relative_position_bucket(
        relative, bidirectional=False, num_buckets=buckets, max_distance=max_distance
    )
    actual = relative_buckets(length, length, buckets=buckets, max_distance=max_distance)
    np.testing.assert_array_equal(actual, expected.numpy())
