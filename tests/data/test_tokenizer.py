"""Token ids equal those of the release, so that its embedding rows have the same meaning."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu_jax.data.tokenizer import Tokenizer, train_tokenizer
from emu_jax.errors import UserError

LINES = [f"a {size} red circle {i} on a blue ground" for i, size in enumerate(["small", "large"] * 200)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return train_tokenizer(LINES, tmp_path_factory.mktemp("tokenizer") / "small.model", vocab_size=310)


@pytest.fixture(scope="module")
def llama(shared_dir):
    return Tokenizer.load(shared_dir / "samples" / "llama_tokenizer.model", instruct=True)


def test_ids_and_text_match_the_release(llama, shared_dir):
    cases = json.loads((shared_dir / "reference" / "tokenization.json").read_text())
    assert len(cases) >= 8
    for case in cases:
        assert [llama.bos_id, *llama.encode(case["text"], special_tokens=True)] == case["ids"], case["text"]
        assert llama.decode(case["ids"]) == case["decoded"]


def test_special_ids_follow_the_pieces(llama):
    assert (llama.bos_id, llama.eos_id) == (1, 2)
    assert (llama.pad_id, llama.boi_id, llama.eoi_id, llama.image_token_id) == (32000, 32001, 32002, 32003)
    assert (llama.user_id, llama.assistant_id, llama.vocab_size) == (32004, 32005, 32006)


def test_without_instruct_the_turns_are_plain_text(small):
    assert small.user_id is None
    assert small.assistant_id is None
    assert small.vocab_size == small.pad_id + 4
    assert max(small.encode("[USER]: hi", special_tokens=True)) < small.pad_id


@given(st.lists(st.sampled_from(["[IMG]", "[/IMG]", "<image>", "</s>", "<s>", "[PAD]", " a ", "red", "<unk>"])))
def test_untrusted_text_never_becomes_a_special_token(small, parts):
    ids = small.encode("".join(parts))
    assert all(3 <= i < small.pad_id for i in ids)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00▁")))
def test_text_round_trip(small, text):
    assert small.decode(small.encode("x" + text)) == "x" + text


def test_special_and_unknown_ids_are_skipped(small):
    ids = [small.bos_id, small.boi_id, *small.encode("red circle"), small.eos_id, small.vocab_size + 50]
    assert small.decode(ids) == "red circle"


def test_training_is_deterministic_and_limited_by_the_text(tmp_path, small):
    again = train_tokenizer(LINES, tmp_path / "again.model", vocab_size=310)
    assert again.encode("a small red circle") == small.encode("a small red circle")
    assert small.pad_id == 310
    limited = train_tokenizer(["ab ab"] * 10, tmp_path / "tiny.model", vocab_size=5000)
    assert 259 < limited.pad_id < 300
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.model", "tiny.model"]


def test_pickle_round_trip(small):
    copy = pickle.loads(pickle.dumps(Tokenizer(small._model, instruct=True)))
    assert copy.encode("a red circle") == small.encode("a red circle")
    assert copy.assistant_id == small.pad_id + 5


def test_invalid_files_raise_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="No tokenizer model at"):
        Tokenizer.load(tmp_path / "missing.model")
    (tmp_path / "text.model").write_text("no model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        Tokenizer.load(tmp_path / "text.model")
    with pytest.raises(UserError, match="no text"):
        train_tokenizer(["", " "], tmp_path / "x.model", vocab_size=300)
