"""Right answers score 1, wrong ones 0, and each attribute by itself; all on scenes that can be told again."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from emu_jax.demo import generation_tasks as painting_tasks
from emu_jax.demo import understanding_tasks as reading_tasks
from emu_jax.demo.examples import Settings, count_scenes, pictured
from emu_jax.demo.world.scenes import (
    BACKGROUNDS,
    COLORS,
    PLACES,
    SHAPES,
    SIZES,
    Object,
    Scene,
    has_held_out,
)
from emu_jax.errors import UserError
from tests.demo.conftest import Draughtsman, Oracle, next_color

SETTINGS = Settings(num_scenes=48, num_images=24, batch_size=20, num_samples=6)


def values(result):
    return {name: score.value for name, score in result.scores.items()}


def test_right_captions_score_one(tokenizer):
    result = reading_tasks.captions(Oracle(tokenizer), SETTINGS)
    assert set(values(result).values()) == {1.0}
    assert result.scores["caption_exact"].count == 48
    seen, held_out = (result.scores[f"caption_exact_{half}"].count for half in ("seen", "held_out"))
    assert seen + held_out == 48
    assert min(seen, held_out) > 10
    assert result.scores["caption_exact"].chance == pytest.approx(1 / 720)
    assert result.scores["caption_attributes/color"].chance == pytest.approx(1 / 6)
    assert result.scores["caption_attributes_two_objects/color"].chance == pytest.approx(0.25, abs=0.06)
    assert [sample.right for sample in result.samples["captions"]] == [True] * 6


def test_a_wrong_color_costs_exactness_and_color_alone(tokenizer):
    result = reading_tasks.captions(Oracle(tokenizer, next_color), SETTINGS)
    found = values(result)
    assert {found[name] for name in found if name.startswith("caption_exact")} == {0.0}
    assert found["caption_attributes/color"] == 0
    for kind in ("shape", "size", "place", "background"):
        assert found[f"caption_attributes/{kind}"] == 1
    assert not any(sample.right for sample in result.samples["captions"])


def test_questions(tokenizer):
    result = reading_tasks.visual_questions(Oracle(tokenizer), SETTINGS)
    found = values(result)
    assert set(found.values()) == {1.0}
    assert result.scores["vqa_accuracy"].count == 36, "how many is reported beside it"
    assert result.scores["vqa_accuracy_by_kind/how many"].count == 12
    lone, several = (result.scores[f"vqa_accuracy_{n}"].count for n in ("one_object", "several_objects"))
    assert lone + several == 36
    assert 1 / 6 <= result.scores["vqa_accuracy_by_kind/color"].chance < 0.6
    wrong = values(reading_tasks.visual_questions(Oracle(tokenizer, next_color), SETTINGS))
    assert wrong["vqa_accuracy_by_kind/color"] == 0
    assert wrong["vqa_accuracy_by_kind/how many"] == 1
    assert wrong["vqa_accuracy"] < 1


def test_films(tokenizer):
    right = reading_tasks.films(Oracle(tokenizer), SETTINGS)
    assert set(values(right).values()) == {1.0}
    assert right.scores["video_direction_accuracy"].chance == 0.25
    assert all(len(sample.shown) == SETTINGS.num_frames for sample in right.samples["films"])
    wrong = reading_tasks.films(Oracle(tokenizer, reverse_videos=True), SETTINGS)
    assert set(values(wrong).values()) == {0.0}


def test_pictures_from_right_embeddings_score_one(tokenizer):
    result = painting_tasks.text_to_image(Oracle(tokenizer), Draughtsman(), SETTINGS)
    assert set(values(result).values()) == {1.0}
    assert result.scores["text_to_image_color_and_shape"].count == 24
    assert result.scores["text_to_embedding_color_and_shape"].count == 48
    assert result.scores["text_to_image_color_and_shape"].chance == pytest.approx(1 / 24)
    sample = result.samples["text_to_image"][0]
    assert sample.wanted in sample.note


def test_pictures_of_another_color_are_wrong_in_color_alone(tokenizer):
    found = values(painting_tasks.text_to_image(Oracle(tokenizer, next_color), Draughtsman(), SETTINGS))
    for way in ("text_to_image", "text_to_embedding"):
        assert found[f"{way}_color_and_shape"] == found[f"{way}_attributes/color"] == 0
        assert found[f"{way}_attributes/shape"] == found[f"{way}_attributes/place"] == 1


def test_in_context(tokenizer):
    right = values(painting_tasks.in_context(Oracle(tokenizer), Draughtsman(), SETTINGS))
    assert right["in_context_accuracy"] == right["in_context_embedding_accuracy"] == 1
    wrong = values(painting_tasks.in_context(Oracle(tokenizer, next_color), Draughtsman(), SETTINGS))
    assert wrong["in_context_accuracy"] == wrong["in_context_embedding_accuracy"] == 0


def test_without_a_painter_embeddings_alone_are_judged(tokenizer):
    oracle = Oracle(tokenizer)
    found = [task(oracle, None, SETTINGS) for task in (painting_tasks.text_to_image, painting_tasks.in_context)]
    assert [all("embedding" in name for name in result.scores) for result in found] == [True, True]
    assert painting_tasks.blending(oracle, None, SETTINGS).scores == {}
    assert painting_tasks.autoencoding(oracle, None, SETTINGS).samples == {}


def test_pictures_through_the_encoder_and_back(tokenizer):
    result = painting_tasks.autoencoding(Oracle(tokenizer), Draughtsman(), SETTINGS)
    assert set(values(result).values()) == {1.0}
    assert len(painting_tasks.blending(Oracle(tokenizer), Draughtsman(), SETTINGS).samples["blending"]) == 6


def test_the_judge_is_judged():
    result = painting_tasks.pixel_reader(Settings(num_scenes=200))
    assert result.scores["pixel_reader_accuracy"].value >= 0.99
    assert result.scores["pixel_reader_accuracy"].count == 200


def test_embeddings_that_are_all_alike_have_no_variance(tokenizer):
    class Blind(Oracle):
        def visual_embeddings(self, images):
            return np.ones((len(images), 4, 8), np.float32)

    class Sighted(Oracle):
        def visual_embeddings(self, images):
            return np.stack([image.reshape(4, -1)[:, :64] / 255.0 for image in images]).astype(np.float32)

    blind = values(painting_tasks.embeddings(Blind(tokenizer), SETTINGS))
    assert blind["visual_embedding_variance"] < 1e-12
    assert blind["visual_embedding_cosine"] == pytest.approx(1)
    sighted = values(painting_tasks.embeddings(Sighted(tokenizer), SETTINGS))
    assert sighted["visual_embedding_variance"] > 1e-3
    assert sighted["visual_embedding_rank"] > 2


def test_the_same_seed_asks_the_same():
    first, again = (pictured(SETTINGS.rng("captions"), SETTINGS, count=8) for _ in range(2))
    assert [one.scene for one in first] == [one.scene for one in again]
    assert all((one.image == two.image).all() for one, two in zip(first, again, strict=True))
    other = pictured(Settings(seed=1).rng("captions"), SETTINGS, count=8)
    assert [one.scene for one in first] != [one.scene for one in other]
    assert any(has_held_out(one.scene) for one in pictured(SETTINGS.rng("x"), SETTINGS, count=30))


def test_scenes_are_counted_right():
    lone = [Object(*kinds) for kinds in itertools.product(SHAPES, COLORS, SIZES, PLACES)]
    assert count_scenes(1) == len(lone) * len(BACKGROUNDS)

    def possible(pair):
        try:
            Scene(pair, BACKGROUNDS[0])
        except ValueError:
            return False
        return True

    pairs = sum(map(possible, itertools.combinations(lone, 2)))
    assert count_scenes(2) == pairs * len(BACKGROUNDS)


def test_settings_that_ask_nothing_are_refused():
    with pytest.raises(UserError, match="num_scenes must be at least 1, not 0"):
        Settings(num_scenes=0)
