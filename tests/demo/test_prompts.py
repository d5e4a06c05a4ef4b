"""A prompt is what training saw, token for token, up to the answer."""

from __future__ import annotations

import numpy as np
import pytest

from emu_jax.data import document as doc
from emu_jax.data.document import Document, Layout, Role
from emu_jax.data.sequence import SequenceConfig, build_sequence
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.demo.prompts import in_context_prompt, question_prompt
from emu_jax.demo.world.rendering import render
from emu_jax.demo.world.stories import sample_in_context
from emu_jax.generation.prompt import build_prompt

N = 4
QUESTION, ANSWER = "where is the red circle?", "top left"


@pytest.fixture(params=[False, True], ids=["pretraining", "instruct"])
def either(request, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.model")
    return Tokenizer.load(tmp_path / "tokenizer.model", instruct=request.param)


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)


def trained(tokenizer, layout, *segments, image_first=1.0):
    config = SequenceConfig(length=400, max_images=8, num_image_tokens=N, image_first=image_first)
    document = Document(segments, source="", key="", layout=layout)
    return build_sequence(document, config=config, tokenizer=tokenizer, rng=np.random.default_rng(0))


def prompted(tokenizer, parts, *, open_image=False):
    return build_prompt(parts, tokenizer=tokenizer, num_image_tokens=N, image_size=32, open_image=open_image).tokens


def assert_begins(sequence, prompt, rest):
    assert sequence[: len(prompt)].tolist() == prompt.tolist()
    assert sequence[len(prompt) :].tolist() == rest


def test_a_caption_goes_on_after_the_picture(either, picture):
    text = "a large red circle in the center on a gray background"
    sequence = trained(either, Layout.PAIR, doc.Image(picture), doc.Text(text))
    assert_begins(sequence.tokens, prompted(either, [picture]), [*either.encode(text), either.eos_id])


def test_a_picture_goes_on_after_its_caption(either, picture):
    text = "a large red circle in the center on a gray background"
    sequence = trained(either, Layout.PAIR, doc.Image(picture), doc.Text(text), image_first=0.0)
    rest = [either.image_token_id] * N + [either.eoi_id, either.eos_id]
    assert_begins(sequence.tokens, prompted(either, [text], open_image=True), rest)


@pytest.mark.parametrize("frames", [1, 4])
def test_an_answer_goes_on_after_the_question(either, picture, frames):
    pictures = [picture] * frames
    film = doc.Video(tuple(doc.Image(frame) for frame in pictures), Role.USER)
    shown = doc.Image(picture, Role.USER) if frames == 1 else film
    sequence = trained(either, Layout.CHAT, shown, doc.Text(QUESTION, Role.USER), doc.Text(ANSWER, Role.ASSISTANT))
    prompt = prompted(either, question_prompt(pictures, QUESTION, tokenizer=either))
    answer = sequence.tokens[len(prompt) :]
    assert sequence.tokens[: len(prompt)].tolist() == prompt.tolist()
    assert either.decode(answer).strip() == ANSWER
    assert sequence.text_loss_mask[len(prompt) - 1 :].tolist() == [1.0] * len(answer) + [0.0]
    assert not sequence.text_loss_mask[: len(prompt) - 1].any()


def test_the_picture_asked_for_goes_on_after_the_instruction(either):
    rng = np.random.default_rng(0)
    task = sample_in_context(rng)
    first, second, target = (render(scene, rng) for scene in (task.first, task.second, task.target))
    segments = []
    for text, image in zip(task.texts, (first, second, target), strict=True):
        segments += [doc.Text(text), doc.Image(image)]
    sequence = trained(either, Layout.STORYBOARD, *segments)
    prompt = prompted(either, in_context_prompt(task, first, second), open_image=True)
    assert_begins(sequence.tokens, prompt, [either.image_token_id] * N + [either.eoi_id, either.eos_id])
