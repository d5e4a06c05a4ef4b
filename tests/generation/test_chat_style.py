"""Prompts of a chat in the layout of the release, and answers that are begun by the prompt."""

import numpy as np
import pytest

from emu_jax.data.document import Role
from emu_jax.data.tokenizer import Tokenizer, train_tokenizer
from emu_jax.generation.chat import ChatStyle, Turn, chat_prompt
from emu_jax.generation.prompt import Tokens

LINES = ["This is the fourth image. Describe all images.", "what is it? the answer is: a red circle"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(LINES, path, vocab_size=300)
    return Tokenizer.load(path, instruct=True)


def ids(turns, tokenizer, **options):
    parts = chat_prompt(turns, tokenizer=tokenizer, **options)
    return [n for part in parts for n in (part.ids if isinstance(part, Tokens) else [-1])]


def user(*parts):
    return Turn(Role.USER, parts)


def test_the_release_joins_texts_without_a_space(tokenizer):
    turn = user("This is the fourth image.", "Describe all images.")
    trained = ids([turn], tokenizer)
    released = ids([turn], tokenizer, style=ChatStyle.RELEASE)
    assert trained == ids([user("This is the fourth image. Describe all images.")], tokenizer)
    assert released == ids([user("This is the fourth image.Describe all images.")], tokenizer)
    assert trained != released


def test_the_release_ends_a_turn_that_is_one_image(tokenizer):
    turns = [user(np.zeros((4, 4, 3), np.uint8)), user("what is it?")]
    trained, released = ids(turns, tokenizer), ids(turns, tokenizer, style=ChatStyle.RELEASE)
    assert tokenizer.eos_id not in trained
    at = released.index(-1) + 1
    assert released[at] == tokenizer.eos_id
    assert released[:at] + released[at + 1 :] == trained


def test_a_turn_with_an_image_and_text_is_the_same_in_both(tokenizer):
    turns = [user(np.zeros((4, 4, 3), np.uint8), "what is it?")]
    assert ids(turns, tokenizer) == ids(turns, tokenizer, style=ChatStyle.RELEASE)


def test_an_answer_is_prefilled(tokenizer):
    turns = [user("what is it?")]
    plain, begun = ids(turns, tokenizer), ids(turns, tokenizer, prefill="the answer is:")
    assert begun[: len(plain)] == plain
    assert tokenizer.decode(begun[len(plain) :]).strip() == "the answer is:"
    assert begun[-1] != tokenizer.eos_id
