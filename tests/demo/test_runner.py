"""metrics.json and the score table of all tasks together. (With a real Emu: tests/cli/test_evaluate.py.)"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from emu_jax.demo.examples import Settings
from emu_jax.demo.models import Models, in_batches
from emu_jax.demo.runner import evaluate, format_score, score_table
from emu_jax.demo.scores import grouped, mean_score
from tests.demo.conftest import Oracle, Renderer, next_color

REQUIRED = (
    "caption_exact",
    "vqa_accuracy",
    "text_to_image_color_and_shape",
    "classifier_accuracy",
    "in_context_accuracy",
    "video_direction_accuracy",
    "visual_embedding_variance",
)


def assert_complete(metrics, *, classifier):
    for name in REQUIRED:
        if classifier or name != "classifier_accuracy":
            assert isinstance(metrics[name], float)
            assert metrics["num_scenes"][name] >= 1
    assert set(metrics["caption_attributes"]) == {"shape", "color", "size", "location", "background"}
    assert set(metrics["num_scenes"]["caption_attributes"]) == set(metrics["caption_attributes"])


@pytest.fixture(scope="module")
def evaluation(tokenizer):
    """The results of a model that is always correct and of one that gets every color wrong; progress calls."""
    settings = Settings(num_scenes=24, num_images=12)
    calls = []
    found = evaluate(
        Models(Oracle(tokenizer), Renderer()),
        settings=settings,
        untrained=Models(Oracle(tokenizer, next_color), Renderer()),
        progress=lambda *call: calls.append(call),
    )
    return found, calls


def test_metrics_have_every_score_with_its_number_of_scenes(evaluation):
    found, calls = evaluation
    metrics = json.loads(json.dumps(found.metrics(), allow_nan=False))
    assert_complete(metrics, classifier=True)
    assert_complete(metrics["untrained"], classifier=False)
    assert {metrics[name] for name in REQUIRED if name != "visual_embedding_variance"} == {1.0}
    assert metrics["untrained"]["caption_exact"] == 0
    assert metrics["num_scenes"]["text_to_image_color_and_shape"] == 12
    assert metrics["untrained"]["num_scenes"]["caption_exact"] == 6, "a quarter of the scenes"
    assert metrics["intervals"]["caption_exact"] == [1, 1]
    low, high = found.untrained["caption_attributes/shape"].interval
    assert low <= found.untrained["caption_attributes/shape"].value <= high
    assert "visual_embedding_variance" not in metrics["intervals"]
    assert metrics["chance"]["in_context_accuracy"] == pytest.approx(1 / 24)
    assert "visual_embedding_variance" not in metrics["chance"]
    assert metrics["seconds_total"] > 0
    assert metrics["peak_rss_gb"] > 0.05
    assert metrics["settings"] == dataclasses.asdict(found.settings)
    assert calls[-1] == ("done", len(calls) - 1, len(calls) - 1)
    assert [done for _, done, _ in calls] == list(range(len(calls)))


def test_samples_are_saved_for_the_report(evaluation):
    samples = evaluation[0].samples
    sections = {"captions", "questions", "text_to_image", "in_context", "blending", "videos", "autoencoding"}
    assert sections <= set(samples)
    assert samples["text_to_image"][0].answer.shape == (32, 32, 3)
    assert samples["captions"][0].correct, "samples are those of the trained model"


def test_without_an_untrained_model_its_scores_are_empty(tokenizer):
    settings = Settings(num_scenes=4, num_images=2)
    metrics = evaluate(Models(Oracle(tokenizer)), settings=settings).metrics()
    assert metrics["untrained"] == {"num_scenes": {}, "intervals": {}}
    assert "text_to_image_color_and_shape" not in metrics, "there is no image generator"


def test_the_table_has_trained_untrained_and_chance(evaluation, tmp_path):
    with (tmp_path / "table").open("w") as file:
        console = Console(width=120, record=True, file=file)
        console.print(score_table(evaluation[0]))
    (line,) = [line for line in console.export_text().splitlines() if line.startswith("in_context_accuracy ")]
    words = "in_context_accuracy 100.0% 0.0% 0.0% 4.2% 12"
    assert line.split() == words.split()


def test_format_of_scores():
    assert format_score("caption_exact", 0.91234) == "91.2%"
    assert format_score("caption_exact", 1 / 720) == "0.14%"
    assert format_score("caption_exact", 1e-6) == "<0.01%"
    assert format_score("caption_exact", 0.0) == "0.0%"
    assert format_score("visual_embedding_variance", 0.012345) == "0.0123"
    assert mean_score([1, 0, 1, 0.5]).value == 0.625
    assert grouped({"a": 1, "b/c": 2, "b/d": 3}) == {"a": 1, "b": {"c": 2, "d": 3}}


def test_all_batches_have_the_same_size():
    sizes = []

    def double(rows):
        sizes.append(len(rows))
        return np.asarray(rows) * 2

    assert in_batches(double, [1, 2, 3, 4, 5], size=2).tolist() == [2, 4, 6, 8, 10]
    assert sizes == [2, 2, 2]
