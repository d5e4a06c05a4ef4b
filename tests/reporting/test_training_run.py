"""The report of a training run: charts of the measured values only, and its configuration."""

from __future__ import annotations

import math
import re

from emu_jax.reporting.training_run import run_sections, write_run_report
from tests.reporting.html_check import checked


def records(steps=40):
    """The records of a run that logs every ten steps."""
    return [
        {
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
        }
        for step in range(10, 10 * steps + 1, 10)
    ]


def test_a_training_run(tmp_path):
    path = write_run_report(tmp_path / "run", records(), config={"train": {"steps": 400}})
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["report.html"]
    text = checked(path.read_text())
    assert "400 steps in 3m15s" in text
    assert "12.3k tokens/s; waiting for data 25% of the time" in text
    titles = re.findall(r"<figcaption>([^<]+)", text)
    assert [title.strip() for title in titles] == [
        "Loss",
        "Text loss by set",
        "Embeddings: variance",
        "Embeddings: effective rank",
        "Waiting for data, fraction of the time",
    ]
    assert "log scale" in text
    assert "400" in text.split('id="configuration"')[1]


def test_warnings_are_marked_and_escaped():
    (section,) = run_sections([("captions", [*records(), {"step": 200, "time": 1.0, "warning": "COLLAPSE: <so>"}])])
    assert section.title == "Training: captions"
    assert "Step 200: COLLAPSE: &lt;so&gt;" in section.body
    assert 'class="mark"' in section.body


def test_a_run_without_records_has_no_section(tmp_path):
    assert [section.body for section in run_sections([("nothing", [])])] == [""]
    assert checked(write_run_report(tmp_path, []).read_text()).count("<section") == 1
