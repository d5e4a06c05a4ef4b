"""LoRA adapters against PyTorch: `W x + alpha / r * B (A x)`, as in peft, around the LLaMA of transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.convert.emu_table import PEFT_DECODER
from emu_jax.convert.export_torch import Layout, prepare_export
from emu_jax.convert.import_torch import prepare_import
from emu_jax.convert.load import load_model
from emu_jax.models.emu import Emu
from tests.convert.release import random_state, small_config, write_release

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RELATIVE = 1e-5  # of the largest value
ALPHA = 16  # of Emu-I


class Adapted(torch.nn.Module):
    """A linear layer and its adapter."""

    def __init__(self, base, down, up):
        super().__init__()
        self.base, self.down, self.up = base, torch.from_numpy(down), torch.from_numpy(up)

    def forward(self, x):
        return self.base(x) + ALPHA / len(self.down) * (x @ self.down.T) @ self.up.T


def their_logits(state, config, tokens, *, adapters):
    """Return the logits of LlamaForCausalLM with the tensors of an Emu-I checkpoint."""
    decoder = config.decoder
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=decoder.vocab_size,
            hidden_size=decoder.width,
            intermediate_size=decoder.mlp_dim,
            num_hidden_layers=decoder.num_layers,
            num_attention_heads=decoder.num_heads,
            rms_norm_eps=decoder.norm_eps,
        )
    ).eval()
    tensors = {name: torch.from_numpy(state[PEFT_DECODER + name]) for name in llama.state_dict()}
    llama.load_state_dict(tensors, strict=True)
    for i, layer in enumerate(llama.model.layers if adapters else ()):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            prefix = f"{PEFT_DECODER}model.layers.{i}.self_attn.{name}"
            matrices = (state[f"{prefix}.lora_{side}.default.weight"] for side in "AB")
            setattr(layer.self_attn, name, Adapted(getattr(layer.self_attn, name), *matrices))
    with torch.no_grad():
        return llama(torch.from_numpy(tokens).long()).logits.numpy()


def our_logits(folder, tokens):
    parts = load_model(folder)
    output = jax.jit(Emu(parts.config, image_token_id=299).apply)({"params": parts.params}, jnp.asarray(tokens))
    return np.asarray(output.logits)[..., : parts.config.decoder.vocab_size]


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


@pytest.fixture
def tuned(tmp_path):
    """Return config, tensors, token ids and checkpoint of a small Emu-I; its small weights are well-conditioned."""
    config = small_config(lora=True)
    state = {name: 0.3 * array for name, array in random_state(config).items()}
    tokens = np.random.default_rng(3).integers(0, 290, (2, 11), dtype=np.int32)
    return config, state, tokens, write_release(tmp_path / "release", config, state)


def test_adapters_match_peft(tmp_path, tuned):
    config, state, tokens, release = tuned
    expected = their_logits(state, config, tokens, adapters=True)
    plain = their_logits(state, config, tokens, adapters=False)
    assert np.abs(expected - plain).max() > 0.1 * np.abs(expected).max()
    assert_close(our_logits(release, tokens), expected)
    prepare_import([release]).write(tmp_path / "model")
    assert_close(our_logits(tmp_path / "model", tokens), expected)


def test_merged_adapters_match_in_transformers(tmp_path, tuned):
    config, state, tokens, release = tuned
    prepare_import([release]).write(tmp_path / "model")
    prepare_export(tmp_path / "model", merge_lora=True).write(tmp_path / "llama", layout=Layout.HUGGINGFACE)
    merged = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "llama").eval()
    with torch.no_grad():
        logits = merged(torch.from_numpy(tokens).long()).logits.numpy()
    assert_close(logits, their_logits(state, config, tokens, adapters=True))


@pytest.mark.parametrize("naming", ["release", "without adapter name", "newer peft"])
def test_parameter_names_of_peft_versions(tmp_path, tuned, naming):
    config, state, tokens, _ = tuned
    adapted = {name.split(".lora_")[0] for name in state if ".lora_" in name}

    def renamed(name):
        if naming == "without adapter name":
            return name.replace(".default.weight", ".weight")
        if naming == "newer peft" and name.removesuffix(".weight") in adapted:
            return name.replace(".weight", ".base_layer.weight")
        return name

    release = write_release(tmp_path / "other", config, {renamed(name): array for name, array in state.items()})
    prepared = prepare_import([release])
    assert prepared.config.lora == dataclasses.replace(config.lora, alpha=ALPHA)
    prepared.write(tmp_path / "model")
    assert_close(our_logits(tmp_path / "model", tokens), their_logits(state, config, tokens, adapters=True))
