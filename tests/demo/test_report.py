"""The page: whole, self-contained, escaped; curves where there are numbers, and nothing where there are none."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from emu_jax.demo.examples import Sample, Settings
from emu_jax.demo.report import (
    about_sections,
    evaluation_sections,
    run_sections,
    write_evaluation_report,
    write_run_report,
)
from emu_jax.demo.runner import Evaluation
from emu_jax.demo.scores import Score
from emu_jax.errors import UserError
from emu_jax.reporting.charts import Line, line_chart, log_ticks, nice_ticks, number
from emu_jax.reporting.page import Section, picture, write_report

VOID = ("meta", "img", "br")
IMAGE = np.zeros((4, 4, 3), np.uint8)


class Checker(HTMLParser):
    """Every element is closed in order; what the page would fetch is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.anchors: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.fetched += [found[name] for name in ("src", "srcset") if name in found]
        self.anchors += [found["href"]] if "href" in found else []
        self.ids += [found["id"]] if "id" in found else []
        assert tag not in ("script", "link", "iframe")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(text):
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert all(url.startswith("data:image/png;base64,") for url in checker.fetched)
    assert "url(" not in text
    assert "http" not in text
    assert {anchor.removeprefix("#") for anchor in checker.anchors} <= set(checker.ids)
    return text


def records(steps=40, **changes):
    for step in range(10, 10 * steps + 1, 10):
        yield {
            "step": step,
            "time": 1000 + 0.5 * step,
            "loss": 3 * math.exp(-step / 90) + 0.01,
            "loss/text": 2 * math.exp(-step / 90) + 0.005,
            "loss/regression": 1 / step,
            "loss/text/coco": 1.0,
            "visual_embedding_variance": 0.01 + step / 1e4,
            "visual_embedding_rank": 5.0,
            "tokens_per_second": 12345.0,
            "data_wait": 0.25,
        } | changes


def write_metrics(workdir, lines):
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


@pytest.fixture
def evaluation():
    made = np.full((4, 4, 3), 200, np.uint8)
    samples = {
        "captions": [
            Sample((IMAGE,), "", "a large red circle in the center", "a large blue circle in the center", False),
            *[Sample((IMAGE,), "", "a small red cross", "a small red cross", True)] * 13,
        ],
        "questions": [Sample((IMAGE,), "is 1 < 2?", "", "yes", False)],
        "text_to_image": [Sample((), "a <b>prompt</b>", made, "large red circle", True, "large red circle on gray")],
        "in_context": [Sample((IMAGE, IMAGE), "…", made, "large red circle", False, "nothing on gray")],
        "blending": [Sample((IMAGE, IMAGE), "", made, "", None, "nothing on gray")],
        "films": [Sample((IMAGE,) * 4, "", "x" * 1000, "a small red circle moving up", False)],
    }
    scores = {
        "caption_exact": Score(0.9, 256, 1 / 720),
        "caption_attributes/shape": Score(0.95, 256, 0.25),
        "visual_embedding_variance": Score(0.0123, 256),
    }
    return Evaluation(Settings(), scores, {"caption_exact": Score(0.0, 64)}, samples, {"captions": 2.0})


def test_the_page_of_an_evaluation(tmp_path, evaluation):
    run = write_metrics(tmp_path / "captions", [*records(), {"step": 200, "time": 1.0, "warning": "COLLAPSE: <so>"}])
    write_evaluation_report(
        tmp_path / "page" / "report.html",
        evaluation,
        title="The demo",
        lead="All of it.",
        runs=[("captions first", run), ("never run", tmp_path / "nothing")],
        config={"train": {"steps": 400, "optimizer": {"b2": 0.95}}, "stage": "pretrain"},
        facts={"Peak memory": "2.1 GB"},
    )
    text = checked((tmp_path / "page" / "report.html").read_text())
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["report.html"]
    for piece in ("90.0%", "0.14%", "0.0123", "is 1 &lt; 2?", "a &lt;b&gt;prompt&lt;/b&gt;", "COLLAPSE: &lt;so&gt;",
                  "Training: captions first", "optimizer.b2", "0.95", "Peak memory", "2.1 GB", "jax"):  # fmt: skip
        assert piece in text, piece
    assert '<span class="off">red</span>' in text, "the wrong color of a wrong caption is marked"
    assert text.count('class="off"') == 1, "and nothing that is right"
    assert "2 more" in text
    assert "never run" not in text
    assert "x" * 301 not in text


def test_wrong_and_right_are_told_apart_without_color(evaluation):
    bodies = {section.title: section.body for section in evaluation_sections(evaluation)}
    assert bodies["Captions"].count("✓ right") == 13
    assert bodies["Captions"].count("✗ wrong") == 1
    assert "right: a large blue circle in the center" in bodies["Captions"]
    assert "✓" not in bodies["Blending"] + bodies["Questions and answers"]
    assert bodies["Autoencoding"] == ""


def test_any_training_run_has_a_page(tmp_path):
    run = write_metrics(tmp_path / "run", records())
    (run / "config.json").write_text(json.dumps({"train": {"steps": 400}}))
    text = checked(write_run_report(run).read_text())
    assert "400 steps in 3m15s" in text
    assert "12.3k tokens/s; waiting for data 25% of the time" in text
    titles = re.findall(r"<figcaption>([^<]+)", text)
    assert [title.strip() for title in titles] == [
        "Loss",
        "Text loss by set",
        "Embeddings: variance",
        "Embeddings: effective rank",
        "Waiting for data, share of the time",
    ]
    assert "log scale" in text
    assert "400" in text.split('id="configuration"')[1]


def test_a_run_without_records_is_left_out(tmp_path):
    assert [section.body for section in run_sections([("nothing", tmp_path)])] == [""]
    assert checked(write_run_report(tmp_path).read_text()).count("<section") == 1


def test_sections_about_nothing_are_empty():
    config, versions = about_sections()
    assert config.body == ""
    assert "Python" in versions.body


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path / "file" / "report.html", [Section("A", "<p>a</p>")], title="t", lead="l")


def test_pictures_are_inside_the_page():
    assert re.fullmatch(
        r'<img src="data:image/png;base64,iVBOR[^"]+" alt="a &quot;b&quot;">', picture(IMAGE, alt='a "b"')
    )


def test_missing_values_leave_gaps_and_steps_are_kept():
    chart = line_chart("t", [Line("a", [0, 10, 20, 30], [1.0, None, math.nan, 3.0]), Line("b", [5], [2.0])])
    assert len(re.search(r'points="([^"]+)"', chart)[1].split()) == 2
    assert "<circle" in chart
    assert "a <b>3</b>" in chart
    assert line_chart("t", [Line("a", [1, 2], [None, math.nan])]) == ""
    assert line_chart("t", []) == ""


def test_points_lie_where_they_should():
    chart = line_chart("t", [Line("a", [0, 50, 100], [0.0, 5.0, 10.0])])
    points = np.array([[float(v) for v in p.split(",")] for p in re.search(r'points="([^"]+)"', chart)[1].split()])
    np.testing.assert_allclose(points[1], points[[0, 2]].mean(0), atol=0.1)
    assert points[0, 0] < points[2, 0]
    assert points[0, 1] > points[2, 1], "up is more"


def test_many_points_are_averaged():
    steps = np.arange(10_000)
    chart = line_chart("t", [Line("a", steps, np.where(steps % 2, 1.0, 3.0))])
    points = re.search(r'points="([^"]+)"', chart)[1].split()
    assert len(points) == 240
    heights = {point.split(",")[1] for point in points}
    assert len(heights) <= 3, "pairs of 1 and 3 average to 2"


@pytest.mark.parametrize("value", [0.0, 1e-9, -3.0, 1e7])
def test_a_flat_curve_is_drawn(value):
    assert "nan" not in line_chart("t", [Line("a", [1, 2, 3], [value] * 3)], logarithmic=True)


def test_ticks_are_round_and_reach_both_ends():
    assert nice_ticks(0.13, 2.6) == [0.0, 1.0, 2.0, 3.0]
    assert nice_ticks(0, 1200) == [0, 500, 1000, 1500]
    assert log_ticks(0.003, 2) == [0.001, 0.01, 0.1, 1.0, 10.0]
    for low, high in ((1e-12, 3.0), (5.0, 5.0), (-2.0, 1e6)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= 7


def test_numbers_are_short():
    assert [number(v) for v in (12500, 0.0003, 0, 0.25, 1500, 2.5e6, -0.00012)] == [
        "12.5k", "3e-4", "0", "0.25", "1500", "2.5M", "-1.2e-4",
    ]  # fmt: skip
