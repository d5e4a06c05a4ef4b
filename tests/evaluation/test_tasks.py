"""Each task: files in the published layout, through a tiny model, to a scores.json."""

from __future__ import annotations

import json

import pytest

from emu_jax.evaluation.api import evaluate
from emu_jax.evaluation.catalog import TASK_NAMES, find_task
from emu_jax.evaluation.results import flat_scores
from tests.evaluation.layouts import write_layout

TEXT_TASKS = [name for name in TASK_NAMES if not find_task(name).makes_images]


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_a_task_runs_end_to_end(name, tiny, tmp_path, wordnet):
    root, out = write_layout(name, tmp_path / "data"), tmp_path / "out" / name
    task = find_task(name)
    result = evaluate(tiny, name, root, output=tmp_path / "out", batch_size=2)
    summary = json.loads((out / "scores.json").read_text())
    lines = (out / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == summary["num_examples"] == result.total > 0
    assert all(task.value_field in json.loads(line) for line in lines)
    assert summary["model"]["weights_fingerprint"]
    assert "prompt" in summary
    if task.server_file:
        assert (out / task.server_file[0]).is_file()
    if name == "mmvet":  # scored by a judge only
        assert result.scored is None
        return
    flat = flat_scores(summary["scores"])
    assert task.headline in flat
    assert flat.keys() == flat_scores(summary["intervals"]).keys() == flat_scores(summary["units"]).keys()
