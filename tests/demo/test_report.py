"""The report of an evaluation: every sample escaped, and correct and wrong answers marked without color."""

from __future__ import annotations

import numpy as np
import pytest

from emu_jax.demo.examples import Sample, Settings
from emu_jax.demo.report import evaluation_sections, write_evaluation_report
from emu_jax.demo.runner import Evaluation
from emu_jax.demo.scores import Score
from tests.reporting.html_check import checked

IMAGE = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture
def evaluation():
    generated = np.full((4, 4, 3), 200, np.uint8)
    samples = {
        "captions": [
            Sample((IMAGE,), "", "a large red circle in the center", "a large blue circle in the center", False),
            *[Sample((IMAGE,), "", "a small red cross", "a small red cross", True)] * 13,
        ],
        "questions": [Sample((IMAGE,), "is 1 < 2?", "", "yes", False)],
        "text_to_image": [
            Sample((), "a <b>prompt</b>", generated, "large red circle", True, "large red circle on gray")
        ],
        "in_context": [Sample((IMAGE, IMAGE), "…", generated, "large red circle", False, "nothing on gray")],
        "blending": [Sample((IMAGE, IMAGE), "", generated, "", None, "nothing on gray")],
        "videos": [Sample((IMAGE,) * 4, "", "x" * 1000, "a small red circle moving up", False)],
    }
    scores = {
        "caption_exact": Score(0.9, 256, 1 / 720),
        "caption_attributes/shape": Score(0.95, 256, 0.25),
        "visual_embedding_variance": Score(0.0123, 256),
    }
    return Evaluation(Settings(), scores, {"caption_exact": Score(0.0, 64)}, samples, {"captions": 2.0})


def test_the_page_of_an_evaluation(tmp_path, evaluation):
    run = [{"step": 10, "time": 1.0, "loss": 2.0}, {"step": 20, "time": 2.0, "warning": "COLLAPSE: <so>"}]
    write_evaluation_report(
        tmp_path / "page" / "report.html",
        evaluation,
        title="The demo",
        lead="All of it.",
        runs=[("captions first", run), ("never run", [])],
        config={"train": {"steps": 400, "optimizer": {"b2": 0.95}}, "stage": "pretrain"},
        facts={"Peak memory": "2.1 GB"},
    )
    text = checked((tmp_path / "page" / "report.html").read_text())
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["report.html"]
    for piece in ("90.0%", "0.14%", "0.0123", "is 1 &lt; 2?", "a &lt;b&gt;prompt&lt;/b&gt;", "COLLAPSE: &lt;so&gt;",
                  "Training: captions first", "optimizer.b2", "0.95", "Peak memory", "2.1 GB", "jax"):  # fmt: skip
        assert piece in text, piece
    assert '<span class="error">red</span>' in text, "the wrong color of a wrong caption is marked"
    assert text.count('class="error"') == 1, "correct words are not marked"
    assert "2 more" in text
    assert "never run" not in text
    assert "x" * 301 not in text


def test_correct_and_wrong_answers_differ_without_color(evaluation):
    bodies = {section.title: section.body for section in evaluation_sections(evaluation)}
    assert bodies["Captions"].count("✓ correct") == 13
    assert bodies["Captions"].count("✗ wrong") == 1
    assert "expected: a large blue circle in the center" in bodies["Captions"]
    assert "✓" not in bodies["Blending"] + bodies["Questions and answers"]
    assert bodies["Autoencoding"] == ""
