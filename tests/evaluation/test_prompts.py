"""Prompts equal the release's, and few-shot examples stand in front of them."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from emu_jax.data.images import decode, resize
from emu_jax.errors import UserError
from emu_jax.evaluation.captioning import CAPTION
from emu_jax.evaluation.catalog import find_task
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.features import emu_encoder, media_features
from emu_jax.evaluation.few_shot import Choice, FeatureSource, ShotOptions, make_shots
from emu_jax.evaluation.predictors import first_sentence, short_answer
from emu_jax.evaluation.prompts import Shot, count_tokens
from emu_jax.evaluation.question_answering import ANSWER
from emu_jax.evaluation.scoring import Selection, read_examples
from emu_jax.evaluation.tasks import visdial, vizwiz
from emu_jax.models.emu import Emu
from tests.evaluation.layouts import write_layout

SYSTEM = (
    "You will be presented with an image: [IMG]ImageContent[/IMG]. You will be able to see the image after I provide "
    "it to you. Please answer my questions based on the given image."
)
QUESTION = Example((1,), (Path("x.jpg"),), "What is it?")


def text(parts) -> str:
    return "".join(part if isinstance(part, str) else "<IMAGE>" for part in parts)


def test_prompts_are_those_of_the_release():
    assert text(CAPTION.template.parts(QUESTION)) == (
        f"{SYSTEM} [USER]:<IMAGE> please provide an accurate and concise description of the given image. [ASSISTANT]: "
        "the image depicts a photo of"
    )
    request = (
        "based on the content of the image and common sense, please provide an accurate answer consisting of only one "
        "word or phrase. What is it?"
    )
    assert text(ANSWER.template.parts(QUESTION)) == f"{SYSTEM} [USER]:<IMAGE> {request} [ASSISTANT]: the answer is:"
    answerability = vizwiz.TASK.predictor.answerability
    assert (
        text(answerability.parts(QUESTION)) == f"{SYSTEM} [USER]:<IMAGE> {request}, is the answer known? [ASSISTANT]:"
    )
    dialog = Example((1, 3), (Path("x.jpg"),), "is it red", details={"history": (("a", "yes"), ("b", "no"))})
    assert text(visdial.prompt(dialog)) == (
        f"{SYSTEM} [USER]:<IMAGE></s> [USER]: a? [ASSISTANT]: yes.</s> [USER]: b? [ASSISTANT]: no.</s> "
        "[USER]: is it red? [ASSISTANT]:"
    )


def test_shots_are_earlier_turns():
    shots = (Shot(Example((2,), (Path("y.jpg"),), "Who?"), "two dogs"),)
    with_image = text(ANSWER.template.parts(QUESTION, shots))
    assert with_image.count("<IMAGE>") == 2
    assert "Who? [ASSISTANT]: the answer is: two dogs.</s> [USER]:<IMAGE> based on" in with_image
    only_text = text(ANSWER.template.parts(QUESTION, (Shot(shots[0].example, "two dogs", text_only=True),)))
    assert only_text == with_image.replace("<IMAGE>", "", 1)


@pytest.mark.parametrize(
    ("generated", "short"),
    [(" The dog, and a cat.", "dog"), ("It is a red ball. So", "red ball"), ('"yes"', ""), ("no\nyes", "no")],
)
def test_answers_are_shortened_as_in_the_release(generated, short):
    assert short_answer(generated) == short


def test_captions_end_with_their_first_sentence():
    assert first_sentence(" A Dog. It runs.\nfast") == " a dog"
    assert first_sentence("a dog at 5.30.") == "a dog at 5.30"


@pytest.fixture
def vqav2(tmp_path):
    root = write_layout("vqav2", tmp_path / "data")
    return root, read_examples(find_task("vqav2"), root, Selection())


def test_rices_puts_the_nearest_image_last(tiny, vqav2, tmp_path):
    root, examples = vqav2
    source = FeatureSource(emu_encoder(tiny), "tiny", tmp_path / "features")
    shots = make_shots(find_task("vqav2"), root, examples, ShotOptions(2), lambda: source)
    training = find_task("vqav2").training_split
    paths = sorted((root / "coco/train2014").iterdir())
    assert training == "train"
    encode = jax.jit(lambda images: tiny.model.apply({"params": tiny.params}, images, method=Emu.image_features))

    def feature(path):
        mean = np.asarray(encode(resize(decode(path), 32)[None])[0]).mean(axis=0)
        return mean / np.linalg.norm(mean)

    for example in examples:
        similarity = [feature(path) @ feature(example.media[0]) for path in paths]
        nearest = [paths[i] for i in np.argsort(similarity)[-2:]]
        assert [shot.example.media[0] for shot in shots(example)] == nearest
        assert all(shot.answer in shot.example.references for shot in shots(example))
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_features_are_computed_once(tmp_path, vqav2):
    _, examples = vqav2
    paths = [example.media[0] for example in examples]
    encode = lambda images: np.stack([np.full(3, image.mean()) + np.arange(3) for image in images])
    first = media_features(paths, encode, network="n", store=tmp_path)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-6)
    again = media_features(paths, lambda images: pytest.fail("computed again"), network="n", store=tmp_path)
    np.testing.assert_array_equal(first, again)


def test_random_and_text_only_shots_have_seeds(vqav2):
    root, examples = vqav2
    task = find_task("vqav2")

    def chosen(choice, seed):
        shots = make_shots(task, root, examples, ShotOptions(2, choice, seed), lambda: pytest.fail("no features"))
        return [[shot.example.key for shot in shots(example)] for example in examples]

    assert chosen(Choice.RANDOM, 0) == chosen(Choice.RANDOM, 0)
    assert any(chosen(Choice.RANDOM, 0) != chosen(Choice.RANDOM, seed) for seed in range(1, 5))
    fixed = chosen(Choice.TEXT, 0)
    assert fixed[0] == fixed[1] == fixed[2]
    with pytest.raises(UserError, match="4 examples; --shots asks for 9"):
        make_shots(task, root, examples, ShotOptions(9, Choice.TEXT), lambda: pytest.fail("no features"))
    with pytest.raises(UserError, match="visdial has no training examples"):
        make_shots(find_task("visdial"), root, [], ShotOptions(1), lambda: pytest.fail("no features"))


def test_tokens_are_counted_without_reading_images(tiny):
    parts = ANSWER.template.parts(QUESTION)
    image = np.zeros((32, 32, 3), np.uint8)
    built = tiny.build_prompt([image if isinstance(part, Path) else part for part in parts], special_tokens=True)
    assert count_tokens(tiny, parts) == len(built.tokens)
