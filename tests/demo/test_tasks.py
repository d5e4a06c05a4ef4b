"""Correct answers score 1 and wrong ones 0, each attribute separately; a seed determines the scenes."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from emu_jax.demo import generation_tasks, understanding_tasks
from emu_jax.demo.examples import Settings, count_scenes, sample_scenes
from emu_jax.demo.world.scenes import (
    BACKGROUNDS,
    COLORS,
    LOCATIONS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    has_held_out,
)
from emu_jax.errors import UserError
from tests.demo.conftest import Oracle, Renderer, next_color

SETTINGS = Settings(num_scenes=48, num_images=24, batch_size=20, num_samples=6)


def values(result):
    return {name: score.value for name, score in result.scores.items()}


def test_correct_captions_score_one(tokenizer):
    result = understanding_tasks.captions(Oracle(tokenizer), SETTINGS)
    assert set(values(result).values()) == {1.0}
    assert result.scores["caption_exact"].count == 48
    seen, held_out = (result.scores[f"caption_exact_{half}"].count for half in ("seen", "held_out"))
    assert seen + held_out == 48
    assert min(seen, held_out) > 10
    assert result.scores["caption_exact"].chance == pytest.approx(1 / 720)
    assert result.scores["caption_attributes/color"].chance == pytest.approx(1 / 6)
    assert result.scores["caption_attributes_two_objects/color"].chance == pytest.approx(0.25, abs=0.06)
    assert [sample.correct for sample in result.samples["captions"]] == [True] * 6


def test_a_wrong_color_lowers_only_exact_match_and_color(tokenizer):
    result = understanding_tasks.captions(Oracle(tokenizer, next_color), SETTINGS)
    found = values(result)
    assert {found[name] for name in found if name.startswith("caption_exact")} == {0.0}
    assert found["caption_attributes/color"] == 0
    for attribute in ("shape", "size", "location", "background"):
        assert found[f"caption_attributes/{attribute}"] == 1
    assert not any(sample.correct for sample in result.samples["captions"])


def test_questions(tokenizer):
    result = understanding_tasks.visual_questions(Oracle(tokenizer), SETTINGS)
    found = values(result)
    assert set(found.values()) == {1.0}
    assert result.scores["vqa_accuracy"].count == 36, "without questions about the count"
    assert result.scores["vqa_accuracy_by_kind/how many"].count == 12
    one, several = (result.scores[f"vqa_accuracy_{n}"].count for n in ("one_object", "several_objects"))
    assert one + several == 36
    assert 1 / 6 <= result.scores["vqa_accuracy_by_kind/color"].chance < 0.6
    wrong = values(understanding_tasks.visual_questions(Oracle(tokenizer, next_color), SETTINGS))
    assert wrong["vqa_accuracy_by_kind/color"] == 0
    assert wrong["vqa_accuracy_by_kind/how many"] == 1
    assert wrong["vqa_accuracy"] < 1


def test_videos(tokenizer):
    correct = understanding_tasks.videos(Oracle(tokenizer), SETTINGS)
    assert set(values(correct).values()) == {1.0}
    assert correct.scores["video_direction_accuracy"].chance == 0.25
    assert all(len(sample.images) == SETTINGS.num_frames for sample in correct.samples["videos"])
    wrong = understanding_tasks.videos(Oracle(tokenizer, reverse_videos=True), SETTINGS)
    assert set(values(wrong).values()) == {0.0}


def test_images_from_correct_embeddings_score_one(tokenizer):
    result = generation_tasks.text_to_image(Oracle(tokenizer), Renderer(), SETTINGS)
    assert set(values(result).values()) == {1.0}
    assert result.scores["text_to_image_color_and_shape"].count == 24
    assert result.scores["text_to_embedding_color_and_shape"].count == 48
    assert result.scores["text_to_image_color_and_shape"].chance == pytest.approx(1 / 24)
    sample = result.samples["text_to_image"][0]
    assert sample.expected in sample.detected


def test_images_of_another_color_are_wrong_only_in_color(tokenizer):
    found = values(generation_tasks.text_to_image(Oracle(tokenizer, next_color), Renderer(), SETTINGS))
    for task in ("text_to_image", "text_to_embedding"):
        assert found[f"{task}_color_and_shape"] == found[f"{task}_attributes/color"] == 0
        assert found[f"{task}_attributes/shape"] == found[f"{task}_attributes/location"] == 1


def test_in_context(tokenizer):
    correct = values(generation_tasks.in_context(Oracle(tokenizer), Renderer(), SETTINGS))
    assert correct["in_context_accuracy"] == correct["in_context_embedding_accuracy"] == 1
    wrong = values(generation_tasks.in_context(Oracle(tokenizer, next_color), Renderer(), SETTINGS))
    assert wrong["in_context_accuracy"] == wrong["in_context_embedding_accuracy"] == 0


def test_without_an_image_generator_only_embeddings_are_scored(tokenizer):
    oracle = Oracle(tokenizer)
    found = [task(oracle, None, SETTINGS) for task in (generation_tasks.text_to_image, generation_tasks.in_context)]
    assert [all("embedding" in name for name in result.scores) for result in found] == [True, True]
    assert generation_tasks.blending(oracle, None, SETTINGS).scores == {}
    assert generation_tasks.autoencoding(oracle, None, SETTINGS).samples == {}


def test_autoencoding_and_blending(tokenizer):
    result = generation_tasks.autoencoding(Oracle(tokenizer), Renderer(), SETTINGS)
    assert set(values(result).values()) == {1.0}
    assert len(generation_tasks.blending(Oracle(tokenizer), Renderer(), SETTINGS).samples["blending"]) == 6


def test_the_classifier_is_scored():
    result = generation_tasks.classifier(Settings(num_scenes=200))
    assert result.scores["classifier_accuracy"].value >= 0.99
    assert result.scores["classifier_accuracy"].count == 200


def test_constant_embeddings_have_no_variance(tokenizer):
    class Collapsed(Oracle):
        def visual_embeddings(self, images):
            return np.ones((len(images), 4, 8), np.float32)

    class Varied(Oracle):
        def visual_embeddings(self, images):
            return np.stack([image.reshape(4, -1)[:, :64] / 255.0 for image in images]).astype(np.float32)

    collapsed = values(generation_tasks.embeddings(Collapsed(tokenizer), SETTINGS))
    assert collapsed["visual_embedding_variance"] < 1e-12
    assert collapsed["visual_embedding_cosine"] == pytest.approx(1)
    varied = values(generation_tasks.embeddings(Varied(tokenizer), SETTINGS))
    assert varied["visual_embedding_variance"] > 1e-3
    assert varied["visual_embedding_rank"] > 2


def test_a_seed_determines_the_scenes():
    first, again = (sample_scenes(SETTINGS.rng("captions"), SETTINGS, count=8) for _ in range(2))
    assert [one.scene for one in first] == [one.scene for one in again]
    assert all((one.image == two.image).all() for one, two in zip(first, again, strict=True))
    other = sample_scenes(Settings(seed=1).rng("captions"), SETTINGS, count=8)
    assert [one.scene for one in first] != [one.scene for one in other]
    assert any(has_held_out(one.scene) for one in sample_scenes(SETTINGS.rng("x"), SETTINGS, count=30))


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        ("captions", "d731b0ca"),
        ("captions_two_objects", "c20cb39a"),
        ("questions", "58efc619"),
        ("videos", "399f2ab7"),
        ("embeddings", "11182f9d"),
        ("text to image", "822625c6"),
        ("in context", "0d4c4e12"),
        ("blending", "73e8a0cc"),
        ("autoencoding", "2597eefa"),
        ("classifier", "eb86539c"),
    ],
)
def test_the_scenes_of_a_task_never_change(task, digest):
    """Scores of different versions are comparable: a renamed task keeps the seed of its first name."""
    numbers = Settings().rng(task).integers(0, 2**32, 8, np.uint64)
    assert hashlib.sha256(numbers.tobytes()).hexdigest()[:8] == digest


def test_scenes_are_counted():
    single = [Object(*attributes) for attributes in itertools.product(SHAPES, COLORS, SIZES, LOCATIONS)]
    assert count_scenes(1) == len(single) * len(BACKGROUNDS)

    def possible(pair):
        try:
            Scene(pair, BACKGROUNDS[0])
        except ValueError:
            return False
        return True

    pairs = sum(map(possible, itertools.combinations(single, 2)))
    assert count_scenes(2) == pairs * len(BACKGROUNDS)


def test_settings_without_scenes_are_refused():
    with pytest.raises(UserError, match="num_scenes must be at least 1, not 0"):
        Settings(num_scenes=0)
