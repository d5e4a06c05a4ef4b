"""A prompt has the same tokens as the training document, up to the start of the answer."""

from __future__ import annotations

import numpy as np
import pytest

from emu_jax.data import document as doc
from emu_jax.data.document import Document, Layout, Role
from emu_jax.data.sequence import build_sequence
from emu_jax.data.sequence_config import SequenceConfig
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.demo.prompts import in_context_prompt, question_prompt
from emu_jax.demo.world.rendering import render
from emu_jax.demo.world.stories import sample_in_context
from emu_jax.generation.prompt import build_prompt

N = 4
QUESTION, ANSWER = "where is the red circle?", "top left"


@pytest.fixture(params=[False, True], ids=["pretraining", "instruct"])
def any_tokenizer(request, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.model")
    return Tokenizer.load(tmp_path / "tokenizer.model", instruct=request.param)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)


def training_sequence(tokenizer, layout, *segments, image_first=1.0):
    config = SequenceConfig(length=400, max_images=8, num_image_tokens=N, image_first=image_first)
    document = Document(segments, source="", key="", layout=layout)
    return build_sequence(document, config=config, tokenizer=tokenizer, rng=np.random.default_rng(0))


def prompt_tokens(tokenizer, parts, *, open_image=False):
    return build_prompt(parts, tokenizer=tokenizer, num_image_tokens=N, image_size=32, open_image=open_image).tokens


def assert_continues(sequence, prompt, rest):
    assert sequence[: len(prompt)].tolist() == prompt.tolist()
    assert sequence[len(prompt) :].tolist() == rest


def test_a_caption_follows_its_image(any_tokenizer, image):
    text = "a large red circle in the center on a gray background"
    sequence = training_sequence(any_tokenizer, Layout.PAIR, doc.Image(image), doc.Text(text))
    assert_continues(
        sequence.tokens, prompt_tokens(any_tokenizer, [image]), [*any_tokenizer.encode(text), any_tokenizer.eos_id]
    )


def test_an_image_follows_its_caption(any_tokenizer, image):
    text = "a large red circle in the center on a gray background"
    sequence = training_sequence(any_tokenizer, Layout.PAIR, doc.Image(image), doc.Text(text), image_first=0.0)
    rest = [any_tokenizer.image_token_id] * N + [any_tokenizer.eoi_id, any_tokenizer.eos_id]
    assert_continues(sequence.tokens, prompt_tokens(any_tokenizer, [text], open_image=True), rest)


@pytest.mark.parametrize("frames", [1, 4])
def test_an_answer_follows_its_question(any_tokenizer, image, frames):
    images = [image] * frames
    video = doc.Video(tuple(doc.Image(frame) for frame in images), Role.USER)
    media = doc.Image(image, Role.USER) if frames == 1 else video
    sequence = training_sequence(
        any_tokenizer, Layout.CHAT, media, doc.Text(QUESTION, Role.USER), doc.Text(ANSWER, Role.ASSISTANT)
    )
    prompt = prompt_tokens(any_tokenizer, question_prompt(images, QUESTION, tokenizer=any_tokenizer))
    answer = sequence.tokens[len(prompt) :]
    assert sequence.tokens[: len(prompt)].tolist() == prompt.tolist()
    assert any_tokenizer.decode(answer).strip() == ANSWER
    assert sequence.text_loss_mask[len(prompt) - 1 :].tolist() == [1.0] * len(answer) + [0.0]
    assert not sequence.text_loss_mask[: len(prompt) - 1].any()


def test_the_target_image_follows_the_instruction(any_tokenizer):
    rng = np.random.default_rng(0)
    task = sample_in_context(rng)
    first, second, target = (render(scene, rng) for scene in (task.first, task.second, task.target))
    segments = []
    for text, image in zip(task.texts, (first, second, target), strict=True):
        segments += [doc.Text(text), doc.Image(image)]
    sequence = training_sequence(any_tokenizer, Layout.STORYBOARD, *segments)
    prompt = prompt_tokens(any_tokenizer, in_context_prompt(task, first, second), open_image=True)
    assert_continues(
        sequence.tokens, prompt, [any_tokenizer.image_token_id] * N + [any_tokenizer.eoi_id, any_tokenizer.eos_id]
    )
