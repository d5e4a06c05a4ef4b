"""The drawn world in words: captions read back, answers that are so, noise that stays true."""

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
    is_right_caption,
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
    Object,
    Place,
    Scene,
    Shape,
    Size,
    Split,
    sample_scene,
)
from emu_jax.demo.world.stories import sample_page

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
splits = st.sampled_from(Split)
RED = Object(Shape.CIRCLE, Color.RED, Size.LARGE, Place.TOP_LEFT)
BLUE = Object(Shape.SQUARE, Color.BLUE, Size.SMALL, Place.BOTTOM_RIGHT)
ONE, TWO = Scene((RED,), Background.WHITE), Scene((RED, BLUE), Background.BLACK)


def parsed(scene):
    return {ParsedObject(item.shape, item.color, item.size, item.place) for item in scene.objects}


@given(rng=seeds, split=splits, count=st.sampled_from([1, 2, 3]))
def test_every_right_caption_reads_back_as_its_scene(rng, split, count):
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


def test_captions_are_short_and_match_whatever_their_case():
    assert all(len(text.split()) <= 14 for text in captions(ONE))
    assert is_right_caption(" A large RED circle at the top left on a white  background.", ONE)
    assert not is_right_caption("a small red circle at the top left on a white background", ONE)
    assert not is_right_caption("a large red circle on a white background", ONE)


@pytest.mark.parametrize(
    ("text", "objects", "background"),
    [
        ("a large red", [ParsedObject(None, Color.RED, Size.LARGE)], None),
        ("a red circle on a white", [ParsedObject(Shape.CIRCLE, Color.RED)], None),
        (
            "a circle and a blue square at the top left, the background is gray",
            [ParsedObject(Shape.CIRCLE), ParsedObject(Shape.SQUARE, Color.BLUE, None, Place.TOP_LEFT)],
            Background.GRAY,
        ),
        ("a red red circle", [ParsedObject(None, Color.RED), ParsedObject(Shape.CIRCLE, Color.RED)], None),
    ],
)
def test_half_right_captions_are_read_as_far_as_they_go(text, objects, background):
    assert parse_caption(text) == ParsedCaption(tuple(objects), background)


@given(text=st.text())
def test_reading_takes_any_text(text):
    found = parse_caption(text)
    assert found is None or found.objects
    assert all(0.0 <= value <= 1.0 for value in score_attributes(text, TWO).values())


def test_scores_count_attribute_by_attribute():
    wrong = "a large green circle at the top left on a white background"
    assert score_attributes(wrong, ONE) == {"shape": 1, "color": 0, "size": 1, "place": 1, "background": 1}
    half = "a large red circle at the top left on a black background"
    assert score_attributes(half, TWO) == {"shape": 0.5, "color": 0.5, "size": 0.5, "place": 0.5, "background": 1}
    swapped = "a small blue square at the bottom right and a large red circle at the top left on a black background"
    assert set(score_attributes(swapped, TWO).values()) == {1.0}
    assert set(score_attributes("the answer is", ONE).values()) == {0.0}
    assert score_attributes("a red circle and a red circle", ONE)["color"] == 0.5


@given(rng=seeds, split=splits)
def test_answers_are_so_and_questions_leave_no_doubt(rng, split):
    scene = sample_scene(rng, split=split)
    asked = questions(scene, rng)
    assert {item.kind for item in asked} == set(QuestionKind) - {QuestionKind.DIRECTION}
    for item in asked:
        assert item.is_right(item.answer)
        if item.kind is QuestionKind.COUNT:
            assert item.answer == COUNT_WORDS[len(scene.objects) - 1]
            continue
        meant = [
            thing
            for thing in scene.objects
            if not any(
                shape.value in item.question.split("?")[0].split() for shape in SHAPES if shape is not thing.shape
            )
            and not any(color.value in item.question.split() for color in COLORS if color is not thing.color)
            and not any(p.value in item.question for p in Place if p is not thing.place)
        ]
        attribute = {QuestionKind.COLOR: "color", QuestionKind.SHAPE: "shape", QuestionKind.PLACE: "place"}[item.kind]
        assert [getattr(thing, attribute).value for thing in meant] == [item.answer]


def test_an_answer_may_come_as_a_phrase():
    where = next(q for q in questions(ONE, np.random.default_rng(0)) if q.kind is QuestionKind.PLACE)
    assert where.is_right("At the top left.")
    assert where.is_right("top left")
    assert not where.is_right("top right")
    assert not where.is_right("")


@given(rng=seeds, split=splits)
def test_clips_in_words(rng, split):
    clip = sample_clip(rng, split=split)
    assert clip_caption(clip, rng) in clip_captions(clip)
    for text in clip_captions(clip):
        found = parse_caption(text)
        assert parse_direction(text) is clip.direction
        assert found == ParsedCaption(
            (ParsedObject(clip.start.shape, clip.start.color, clip.start.size),), clip.background
        )
    asked = clip_question(clip, rng)
    assert asked.is_right(clip.direction.value)
    assert asked.kind is QuestionKind.DIRECTION
    assert parse_direction(asked.question) is None


@given(rng=seeds)
def test_alt_texts_leave_out_and_never_lie(rng):
    scene = sample_scene(rng)
    text = alt_text(scene, rng)
    assert text.strip() == text != ""
    words = set(text.lower().replace("_", " ").replace("-", " ").replace(",", " ").replace(".", " ").split())
    assert words & {shape.value for shape in SHAPES} <= {item.shape.value for item in scene.objects}
    assert words & {color.value for color in COLORS} <= {item.color.value for item in scene.objects}


def test_alt_texts_are_noisy_but_mostly_tell_shape_and_colour():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, num_objects=1) for _ in range(2000)]
    texts = [alt_text(scene, rng) for scene in scenes]
    clean = sum(is_right_caption(text, scene) for text, scene in zip(texts, scenes, strict=True))
    telling = sum(
        s.object.color.value in t.lower() and s.object.shape.value in t.lower()
        for t, s in zip(texts, scenes, strict=True)
    )
    assert 0.15 < clean / 2000 < 0.35
    assert telling / 2000 > 0.8
    assert any(".jpg" in text for text in texts)
    assert any(text.isupper() for text in texts)


@given(rng=seeds)
def test_pages_describe_the_pictures_that_are_matched(rng):
    page = sample_page(rng)
    for image in page.images:
        assert is_right_caption(page.sentences[image.sentence], image.scene) == (image.similarity >= 0.32)


@given(rng=seeds)
def test_chats_have_one_to_three_turns(rng):
    turns = conversation(sample_scene(rng), rng)
    assert 1 <= len(turns) <= 3
    assert all(question and answer for question, answer in turns)


def test_the_corpus_holds_every_word_of_the_world():
    lines = list(corpus(np.random.default_rng(0), 3000))
    assert len(lines) == 3000
    assert all(lines)
    assert lines == list(corpus(np.random.default_rng(0), 3000))
    words = set(" ".join(lines).lower().replace("?", " ").replace(",", " ").split())
    wanted = [item.value for kind in (Shape, Color, Size, Place, Background) for item in kind]
    wanted += [*COUNT_WORDS, "left right up down what color shape where how many image 1 2 describe answer"]
    assert set(" ".join(wanted).split()) <= words
