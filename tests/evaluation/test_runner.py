"""The runner: resumed runs, broken and missing images, full batches, few programs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation.api import evaluate
from emu_jax.evaluation.batches import plan_batches
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.few_shot import Choice, ShotOptions
from emu_jax.evaluation.image_metrics.networks import ImageNetworks
from emu_jax.evaluation.task import ScoreOptions
from tests.evaluation.layouts import write_layout


@pytest.fixture
def root(tmp_path):
    return write_layout("vqav2", tmp_path / "data")


def run(tiny, root, out, **options):
    return evaluate(tiny, "vqav2", root, output=out, batch_size=1, **options)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_is_resumed_with_the_same_predictions(tiny, root, tmp_path, monkeypatch):
    run(tiny, root, tmp_path / "whole")
    seen = []

    def stop(done, total):
        seen.append(done)
        if done == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tiny, root, tmp_path / "out", progress=stop)
    part = tmp_path / "out/vqav2/predictions.jsonl"
    assert len(part.read_text().splitlines()) == 1
    with part.open("a") as file:
        file.write('{"question_id": ')  # as kill -9 may leave it
    seen.clear()
    run(tiny, root, tmp_path / "out", progress=lambda done, total: seen.append(done))
    assert seen == [1, 2, 3]
    whole = tmp_path / "whole/vqav2"
    assert part.read_text() == (whole / "predictions.jsonl").read_text()
    assert (tmp_path / "out/vqav2/scores.json").read_text() == (whole / "scores.json").read_text()

    with pytest.raises(UserError, match=r"holds the predictions of another run \(shots differ\)"):
        run(tiny, root, tmp_path / "out", shots=ShotOptions(2, Choice.TEXT))


def test_a_broken_image_is_reported_and_counted(tiny, root, tmp_path, caplog):
    broken = root / "coco/val2014/COCO_val2014_000000000002.jpg"
    good = broken.read_bytes()
    broken.write_bytes(good[:200])
    with pytest.raises(UserError, match=r"vqav2 20 cannot be read: .*--max-missing"):
        run(tiny, root, tmp_path / "out")
    result = run(tiny, root, tmp_path / "out", max_missing=1)
    summary = json.loads((tmp_path / "out/vqav2/scores.json").read_text())
    assert summary["num_examples"] == 2 == len(result.examples)
    assert "cannot be opened" in summary["missing"]["20"]
    assert "the scores are over the other 2" in caplog.text
    assert (tmp_path / "out/vqav2/skipped.jsonl").is_file()
    broken.write_bytes(good)
    assert run(tiny, root, tmp_path / "out").summary()["num_examples"] == 3  # a repaired file is read again
    assert not (tmp_path / "out/vqav2/skipped.jsonl").exists()


def test_missing_images_are_counted_before_the_work(tiny, root, tmp_path):
    for n in (1, 3):
        (root / f"coco/val2014/COCO_val2014_{n:012d}.jpg").unlink()
    with pytest.raises(
        UserError, match=r"2 of 3 examples of vqav2 are missing \(10: there is no file .*--max-missing 2"
    ):
        run(tiny, root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run(tiny, root, None, max_missing=2).summary()["num_missing"] == 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"limit": 0}, "--limit must be at least 1"),
        ({"max_missing": -1}, "--max-missing must be at least 0"),
        ({"shots": -1}, "--shots must be at least 0"),
        ({"split": "dev"}, "not 'dev'"),
    ],
)
def test_bad_options_are_one_line(tiny, root, options, line):
    with pytest.raises(UserError, match=line):
        evaluate(tiny, "vqav2", root, **options)


def test_unknown_tasks_and_folders(tiny, tmp_path):
    with pytest.raises(UserError, match="Did you mean vqav2"):
        evaluate(tiny, "vqa", tmp_path)
    with pytest.raises(UserError, match=r"There is no file .*v2_mscoco_val2014.*--list"):
        evaluate(tiny, "vqav2", tmp_path)
    with pytest.raises(UserError, match="There is no folder"):
        evaluate(tiny, "vqav2", tmp_path / "nowhere")


def test_few_shot_predictions_through_the_model(tiny, root, tmp_path):
    result = run(tiny, root, tmp_path, shots=1, limit=2)
    summary = result.summary()
    assert summary["shots"] == {"count": 1, "choice": "rices", "seed": 0, "features": "vision encoder"}
    assert summary["num_examples"] == 2


def test_a_given_clip_finds_the_nearest_images(tiny, root, clip, tmp_path):
    options = ScoreOptions(networks=ImageNetworks(clip=clip))
    result = run(tiny, root, tmp_path, shots=1, limit=2, options=options)
    assert result.summary()["shots"]["features"].startswith("tiny-clip (")
    assert {np.load(path)["features"].shape[1] for path in (tmp_path / "features").iterdir()} == {12}


def test_batches_are_sorted_and_warm_up_comes_first():
    examples = [Example((i,)) for i in range(7)]
    plan = plan_batches(examples, [100, 10, 101, 11, 12, 99, 13], batch_size=2)
    keys = [[example.key[0] for example in batch.examples] for batch in plan.batches]
    # sorted by length: 1 3 | 4 6 | 5 0 | 2, in two buckets of length
    assert keys == [[1, 3], [5, 0], [4, 6], [2]]
    assert plan.warm_up == 2
    assert [batch.number for batch in plan.batches] == [0, 1, 2, 3]
    assert {batch.rows for batch in plan.batches} == {2}


def test_nothing_is_compiled_after_the_first_batches(tiny, root, tmp_path, caplog):
    caplog.set_level("INFO")
    run(tiny, root, tmp_path)
    assert "0 in the other 2" in caplog.text
