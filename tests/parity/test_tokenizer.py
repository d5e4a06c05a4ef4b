"""The tokenizer of a Hugging Face export, loaded by transformers, encodes like ours."""

import json

import pytest

from emu_jax.checkpoints.model_directory import save_model
from emu_jax.convert.export_torch import Layout, prepare_export
from emu_jax.convert.load import load_model
from emu_jax.data.tokenizer import Tokenizer, train_tokenizer
from tests.convert.release import random_state, small_config, with_parts, write_release

transformers = pytest.importorskip("transformers")

LINES = ["a red circle on a blue ground", "what is this? a small green square.", "This is the first image of a dog"]
TEXTS = (
    "a red circle on a blue ground",
    "The caf\u00e9 \U0001f600\nsells 42 dogs",
    "a  dog   with spaces",
    "[USER]: what is this? [ASSISTANT]: a small square</s>",
    "first [IMG]<image><image>[/IMG] of a dog. <s>This is",
    "[IMG]ImageContent[/IMG]",
)


@pytest.mark.parametrize("instruct", [False, True])
def test_encodings_of_a_trained_tokenizer_are_equal(tmp_path, instruct):
    trained = train_tokenizer(LINES * 4, tmp_path / "pieces.model", vocab_size=300)
    ours = Tokenizer.load(tmp_path / "pieces.model", instruct=instruct)
    assert_equal(tmp_path, ours, tmp_path / "pieces.model")
    assert trained.pad_id == ours.pad_id


def test_encodings_of_the_llama_tokenizer_are_equal(tmp_path, shared_dir):
    path = shared_dir / "samples" / "llama_tokenizer.model"
    ours = Tokenizer.load(path, instruct=True)
    theirs = assert_equal(tmp_path, ours, path)
    for case in json.loads((shared_dir / "reference" / "tokenization.json").read_text()):
        assert theirs.encode(case["text"]) == case["ids"]
    assert theirs.convert_tokens_to_ids("<image>") == 32003


def assert_equal(tmp_path, ours, pieces):
    config = with_parts(small_config(), decoder={"vocab_size": ours.vocab_size})
    params = load_model(write_release(tmp_path / "release", config, random_state(config))).params
    save_model(tmp_path / "model", config, params, tokenizer=pieces)
    prepare_export(tmp_path / "model").write(tmp_path / "out", layout=Layout.HUGGINGFACE)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(theirs) == ours.vocab_size
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (ours.pad_id, ours.bos_id, ours.eos_id)
    for text in TEXTS:
        assert theirs.encode(text) == [ours.bos_id, *ours.encode(text, special_tokens=True)], text
        assert theirs.decode(ours.encode(text), skip_special_tokens=True) == ours.decode(ours.encode(text)), text
    return theirs
