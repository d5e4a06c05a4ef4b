"""Texts of the synthetic world: captions can be parsed, answers are correct, noisy texts contain nothing false."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu_jax.demo.world.alt_text import alt_text
from emu_jax.demo.world.corpus import corpus
from emu_jax.demo.world.grammar import (
    ATTRIBUTES,
    ParsedCaption,
    ParsedObject,
    caption,
    captions,
    is_correct_caption,
    parse_caption,
    score_attributes,
)
from emu_jax.demo.world.motion import clip_caption, clip_captions, clip_question, parse_direction, sample_clip
from emu_jax.demo.world.questions import COUNT_WORDS, QuestionKind, conversation, questions
from emu_jax.demo.world.scenes import (
    COLORS,
    SHAPES,
    Background,
    Color,
    Location,
    Object,
    Scene,
    Shape,
    Size,
    Split,
    sample_scene,
)
from emu_jax.demo.world.stories import sample_page

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
splits = st.sampled_from(Split)
RED = Object(Shape.CIRCLE, Color.RED, Size.LARGE, Location.TOP_LEFT)
BLUE = Object(Shape.SQUARE, Color.BLUE, Size.SMALL, Location.BOTTOM_RIGHT)
ONE, TWO = Scene((RED,), Background.WHITE), Scene((RED, BLUE), Background.BLACK)


def parsed(scene):
    return {ParsedObject(item.shape, item.color, item.size, item.location) for item in scene.objects}


@given(rng=seeds, split=splits, count=st.sampled_from([1, 2, 3]))
def test_every_correct_caption_parses_to_its_scene(rng, split, count):
    scene = sample_scene(rng, split=split, num_objects=count)
    texts = captions(scene)
    assert len(texts) == {1: 5, 2: 8, 3: 24}[count]
    assert caption(scene, rng) in texts
    for text in texts:
        found = parse_caption(text)
        assert found is not None
        assert found.background is scene.background
        assert len(found.objects) == count
        assert set(found.objects) == parsed(scene)
        assert score_attributes(text, scene) == dict.fromkeys(ATTRIBUTES, 1.0)


@given(rng=seeds)
def test_captions_of_different_scenes_differ(rng):
    first, second = sample_scene(rng), sample_scene(rng)
    assert (captions(first) & captions(second) != frozenset()) == (first == second)


def test_captions_are_short_and_match_in_any_case():
    assert all(len(text.split()) <= 14 for text in captions(ONE))
    assert is_correct_caption(" A large RED circle at the top left on a white  background.", ONE)
    assert not is_correct_caption("a small red circle at the top left on a white background", ONE)
    assert not is_correct_caption("a large red circle on a white background", ONE)


@pytest.mark.parametrize(
    ("text", "objects", "background"),
    [
        ("a large red", [ParsedObject(None, Color.RED, Size.LARGE)], None),
        ("a red circle on a white", [ParsedObject(Shape.CIRCLE, Color.RED)], None),
        (
            "a circle and a blue square at the top left, the background is gray",
            [ParsedObject(Shape.CIRCLE), ParsedObject(Shape.SQUARE, Color.BLUE, None, Location.TOP_LEFT)],
            Background.GRAY,
        ),
        ("a red red circle", [ParsedObject(None, Color.RED), ParsedObject(Shape.CIRCLE, Color.RED)], None),
    ],
)
def test_partly_correct_captions_are_parsed(text, objects, background):
    assert parse_caption(text) == ParsedCaption(tuple(objects), background)


@given(text=st.text())
def test_any_text_can_be_parsed(text):
    found = parse_caption(text)
    assert found is None or found.objects
    assert all(0.0 <= value <= 1.0 for value in score_attributes(text, TWO).values())


def test_scores_per_attribute():
    wrong = "a large green circle at the top left on a white background"
    assert score_attributes(wrong, ONE) == {"shape": 1, "color": 0, "size": 1, "location": 1, "background": 1}
    half = "a large red circle at the top left on a black background"
    assert score_attributes(half, TWO) == {"shape": 0.5, "color": 0.5, "size": 0.5, "location": 0.5, "background": 1}
    swapped = "a small blue square at the bottom right and a large red circle at the top left on a black background"
    assert set(score_attributes(swapped, TWO).values()) == {1.0}
    assert set(score_attributes("the answer is", ONE).values()) == {0.0}
    assert score_attributes("a red circle and a red circle", ONE)["color"] == 0.5


@given(rng=seeds, split=splits)
def test_answers_are_correct_and_questions_unambiguous(rng, split):
    scene = sample_scene(rng, split=split)
    asked = questions(scene, rng)
    assert {item.kind for item in asked} == set(QuestionKind) - {QuestionKind.DIRECTION}
    for item in asked:
        assert item.is_correct(item.answer)
        if item.kind is QuestionKind.COUNT:
            assert item.answer == COUNT_WORDS[len(scene.objects) - 1]
            continue
        matching = [
            candidate
            for candidate in scene.objects
            if not any(
                shape.value in item.question.split("?")[0].split() for shape in SHAPES if shape is not candidate.shape
            )
            and not any(color.value in item.question.split() for color in COLORS if color is not candidate.color)
            and not any(p.value in item.question for p in Location if p is not candidate.location)
        ]
        attribute = {QuestionKind.COLOR: "color", QuestionKind.SHAPE: "shape", QuestionKind.LOCATION: "location"}[
            item.kind
        ]
        assert [getattr(candidate, attribute).value for candidate in matching] == [item.answer]


def test_an_answer_may_be_a_phrase():
    where = next(q for q in questions(ONE, np.random.default_rng(0)) if q.kind is QuestionKind.LOCATION)
    assert where.is_correct("At the top left.")
    assert where.is_correct("top left")
    assert not where.is_correct("top right")
    assert not where.is_correct("")


@given(rng=seeds, split=splits)
def test_texts_of_clips(rng, split):
    clip = sample_clip(rng, split=split)
    assert clip_caption(clip, rng) in clip_captions(clip)
    for text in clip_captions(clip):
        found = parse_caption(text)
        assert parse_direction(text) is clip.direction
        assert found == ParsedCaption(
            (ParsedObject(clip.start.shape, clip.start.color, clip.start.size),), clip.background
        )
    asked = clip_question(clip, rng)
    assert asked.is_correct(clip.direction.value)
    assert asked.kind is QuestionKind.DIRECTION
    assert parse_direction(asked.question) is None


@given(rng=seeds)
def test_alt_texts_omit_but_never_contradict(rng):
    scene = sample_scene(rng)
    text = alt_text(scene, rng)
    assert text.strip() == text != ""
    words = set(text.lower().replace("_", " ").replace("-", " ").replace(",", " ").replace(".", " ").split())
    assert words & {shape.value for shape in SHAPES} <= {item.shape.value for item in scene.objects}
    assert words & {color.value for color in COLORS} <= {item.color.value for item in scene.objects}


def test_alt_texts_are_noisy_but_mostly_name_shape_and_color():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, num_objects=1) for _ in range(2000)]
    texts = [alt_text(scene, rng) for scene in scenes]
    clean = sum(is_correct_caption(text, scene) for text, scene in zip(texts, scenes, strict=True))
    informative = sum(
        s.object.color.value in t.lower() and s.object.shape.value in t.lower()
        for t, s in zip(texts, scenes, strict=True)
    )
    assert 0.15 < clean / 2000 < 0.35
    assert informative / 2000 > 0.8
    assert any(".jpg" in text for text in texts)
    assert any(text.isupper() for text in texts)


@given(rng=seeds)
def test_pages_describe_their_matched_images(rng):
    page = sample_page(rng)
    for image in page.images:
        assert is_correct_caption(page.sentences[image.sentence], image.scene) == (image.similarity >= 0.32)


@given(rng=seeds)
def test_chats_have_one_to_three_turns(rng):
    turns = conversation(sample_scene(rng), rng)
    assert 1 <= len(turns) <= 3
    assert all(question and answer for question, answer in turns)


def test_the_corpus_has_every_word_of_the_world():
    lines = list(corpus(np.random.default_rng(0), 3000))
    assert len(lines) == 3000
    assert all(lines)
    assert lines == list(corpus(np.random.default_rng(0), 3000))
    words = set(" ".join(lines).lower().replace("?", " ").replace(",", " ").split())
    required = [item.value for enum in (Shape, Color, Size, Location, Background) for item in enum]
    required += [*COUNT_WORDS, "left right up down what color shape where how many image 1 2 describe answer"]
    assert set(" ".join(required).split()) <= words
