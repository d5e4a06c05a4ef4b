"""report.html and the table of several outputs."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from emu_jax.cli import evaluate
from emu_jax.errors import UserError
from emu_jax.evaluation.compare import comparison_table
from tests.evaluation.layouts import write_layout


def score(root, out, answers, *words):
    predictions = out.with_suffix(".jsonl")
    rows = [{"question_id": 10 * (n + 1), "answer": answer} for n, answer in enumerate(answers)]
    predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["--predictions", str(predictions), "--task", "vqav2", "--data", str(root), "--output", str(out), *words]
    evaluate.main(line)


@pytest.fixture
def outputs(tmp_path):
    root = write_layout("vqav2", tmp_path / "data")
    score(root, tmp_path / "a", ["dog", "table", "<b>"])
    score(root, tmp_path / "b", ["dog", "red", "red"])
    score(root, tmp_path / "c", ["dog", "red", "red"], "--vqa-protocol", "official")
    return [tmp_path / name for name in "abc"]


def test_the_report_shows_best_worst_and_random_examples(outputs):
    page = (outputs[0] / "vqav2/report.html").read_text()
    assert page.index("Best examples") < page.index("Worst examples") < page.index("Random examples")
    assert page.count("data:image/png;base64") == 9
    best = page[page.index('id="best-examples"') : page.index('id="worst-examples"')]
    assert best.index("<b>prediction</b> dog") < best.index("&lt;b&gt;")
    assert "per_answer_type/other" in page


def text(table) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_outputs_become_one_table(outputs):
    same = text(comparison_table(outputs[:2]))
    assert "overall" in same
    assert "*" not in same
    differing = text(comparison_table(outputs))
    assert "* vqav2: protocol differ" in differing


def test_an_output_without_scores(tmp_path):
    with pytest.raises(UserError, match=r"holds no TASK/scores\.json"):
        comparison_table([tmp_path])
