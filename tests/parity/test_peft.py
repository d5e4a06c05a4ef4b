"""Adapters in peft's folder, against peft itself around the LLaMA of transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.checkpoints.adapter import read_adapter, save_adapter
from emu_jax.checkpoints.model_directory import read_model
from emu_jax.convert.export_torch import Layout, prepare_export
from emu_jax.convert.peft_adapter import read_peft_adapter, save_peft_adapter
from emu_jax.layers.linear import LoraConfig
from emu_jax.models.emu import Emu
from tests.convert.test_peft_adapter import write_adapter

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

RELATIVE = 1e-5  # of the largest value


def our_logits(folder, tokens):
    parts = read_model(folder)
    output = jax.jit(Emu(parts.config, image_token_id=299).apply)({"params": parts.params}, jnp.asarray(tokens))
    return np.asarray(output.logits)[..., : parts.config.decoder.vocab_size]


@pytest.mark.parametrize("new_tokens", [0, 2])
def test_peft_opens_the_adapter_and_writes_one_that_we_read(tmp_path, new_tokens):
    adapter = write_adapter(tmp_path, LoraConfig(rank=3, alpha=7.0, dropout=0.0), new_tokens=new_tokens)
    save_peft_adapter(tmp_path / "peft", adapter, base=tmp_path / "base")
    prepare_export(tmp_path / "base").write(tmp_path / "llama", layout=Layout.HUGGINGFACE)
    llama = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "llama")
    llama.resize_token_embeddings(adapter.vocab_size)
    tokens = np.random.default_rng(3).integers(0, 290, (2, 11), dtype=np.int32)
    tokens[:, 4] = adapter.vocab_size - 1 if new_tokens else 5
    model = peft.PeftModel.from_pretrained(llama, tmp_path / "peft").eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens).long()).logits.numpy()
        with model.disable_adapter():
            without = model(torch.from_numpy(tokens).long()).logits.numpy()
    expected = our_logits(tmp_path / "tuned", tokens)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())
    assert np.abs(without - logits).max() > 1e-3 * np.abs(expected).max()

    model.save_pretrained(tmp_path / "theirs")
    back = read_peft_adapter(tmp_path / "theirs", base=tmp_path / "base")
    save_adapter(tmp_path / "back", back)
    back = read_adapter(tmp_path / "back")
    assert dataclasses.replace(back, arrays={}) == dataclasses.replace(adapter, arrays={})
    assert back.arrays.keys() == adapter.arrays.keys()
    for path, array in adapter.arrays.items():
        np.testing.assert_array_equal(back.arrays[path], array)
