"""Scores of the reference set equal those of the official code, through `evaluate --predictions`."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emu_jax.cli import evaluate

REFERENCE = Path(__file__).resolve().parents[1] / "data" / "evaluation"
EXPECTED = json.loads((REFERENCE / "expected.json").read_text())


def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(tree, dict):
        return {key: value for name, branch in tree.items() for key, value in leaves(branch, (*path, name)).items()}
    if isinstance(tree, list):
        return {key: value for n, branch in enumerate(tree) for key, value in leaves(branch, (*path, str(n))).items()}
    return {path: tree}


@pytest.mark.parametrize("task", ["vqav2", "okvqa", "visdial", "coco_karpathy"])
def test_scores_equal_the_official_code(task, tmp_path, capsys):
    if task == "coco_karpathy" and shutil.which("java") is None:
        pytest.skip("the PTB tokenizer and METEOR require Java")
    words = ["--predictions", str(REFERENCE / task / "predictions.jsonl"), "--task", task, "--data", str(REFERENCE)]
    evaluate.main([*words, "--output", str(tmp_path)])
    summary = json.loads((tmp_path / task / "scores.json").read_text())
    official = leaves(summary["official"])
    for path, value in leaves(EXPECTED[task]).items():
        exact = task in ("vqav2", "okvqa")
        assert official[path] == value if exact else math.isclose(official[path], value, abs_tol=1e-9), path
    assert summary["num_examples"] == len((REFERENCE / task / "predictions.jsonl").read_text().splitlines())
    assert f"{task}" in capsys.readouterr().out


def test_printed_units_and_intervals(tmp_path):
    words = ["--predictions", str(REFERENCE / "visdial/predictions.jsonl"), "--task", "visdial"]
    evaluate.main([*words, "--data", str(REFERENCE), "--output", str(tmp_path)])
    summary = json.loads((tmp_path / "visdial/scores.json").read_text())
    assert summary["scores"]["MRR"] == pytest.approx(100 * EXPECTED["visdial"]["MRR"])
    assert summary["units"]["MRR"] == "100 x the official value"
    low, high = summary["intervals"]["MRR"]
    assert low < summary["scores"]["MRR"] < high
    assert summary["scores"]["mean_rank"] == pytest.approx(EXPECTED["visdial"]["mean_rank"])
    assert summary["examples_per_score"]["NDCG"] == 12


def test_frechet_distance(tmp_path):
    arrays = {name: np.load(REFERENCE / "features" / f"{name}.npy") for name in ("real", "generated")}
    np.savez(tmp_path / "features.npz", **arrays)
    words = ["--predictions", str(tmp_path / "features.npz"), "--task", "frechet_distance", "--output", str(tmp_path)]
    evaluate.main(words)
    summary = json.loads((tmp_path / "frechet_distance/scores.json").read_text())
    assert summary["official"]["frechet_distance"] == pytest.approx(EXPECTED["frechet_distance"], rel=1e-12)
