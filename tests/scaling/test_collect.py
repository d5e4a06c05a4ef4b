"""The table of a study, from workdirs as `train` leaves them."""

import dataclasses
import json

import pyarrow.parquet
import pytest

from emu_jax.errors import UserError
from emu_jax.scaling.analysis import analyze, fit_json
from emu_jax.scaling.collect import collect, write_table
from emu_jax.scaling.fit import FitOptions
from emu_jax.scaling.folder import workdir_of, write_plan
from emu_jax.scaling.plan import Plan, Run
from emu_jax.scaling.progress import Outcome, mark_diverged, outcome_of
from emu_jax.scaling.study import HardwareConfig, StudyConfig
from tests.scaling.surfaces import SURFACES, isoflop_grid

STUDY = StudyConfig(config="c.py", widths=(64,), hardware=HardwareConfig("h", 1e9), budgets=(1e18,))
ROWS, LENGTH, SLOTS, STEPS = 4, 100, 2, 50


def make_run(number: int, *, params: float, tokens: float, budget: float, held_out: bool = False) -> Run:
    return Run(
        id=f"r{number}", config="c.py", overrides={}, width=64, params=int(params), decoder_params=int(0.6 * params),
        image_params_tokens=int(10 * params), tokens=tokens, budget=budget, point=budget, steps=STEPS,
        cooldown_from=40, learning_rate=1e-3, seed=0, held_out=held_out, parent=None, start=0, hours=0.1,
    )  # fmt: skip


def write_workdir(study, run, *, loss, variance=0.5, steps=STEPS, config=False):
    workdir = workdir_of(study, run)
    workdir.mkdir(parents=True)
    records = [
        {"step": steps // 2, "loss": 3.0, "loss/text": 2.0, "visual_embedding_variance": 0.5,
         "visual_embedding_rank": 9.0},
        {"step": steps, "loss": loss, "loss/text": 1.0, "loss/text/caption": 0.9, "fill/tokens": 0.5,
         "fill/images": 0.25, "visual_embedding_variance": variance, "visual_embedding_rank": 9.0},
    ]  # fmt: skip
    if loss is not None:
        records.append({"step": steps, "eval/caption/text": loss - 0.1, "eval/video/text": loss + 0.1})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if config:
        batch = {"batch_size": ROWS, "length": LENGTH, "max_images": SLOTS}
        (workdir / "config.json").write_text(json.dumps({"data": {"batch": batch}}))
    return workdir


def test_each_outcome_is_recognized(tmp_path):
    runs = [make_run(i, params=1e6, tokens=1e7, budget=1e14) for i in range(6)]
    write_workdir(tmp_path, runs[0], loss=2.5)
    write_workdir(tmp_path, runs[1], loss=2.5, variance=1e-5)
    write_workdir(tmp_path, runs[2], loss=None)
    write_workdir(tmp_path, runs[3], loss=2.5, steps=30)
    mark_diverged(write_workdir(tmp_path, runs[4], loss=2.5, steps=30), reason="the gradient was not finite")
    expected = ["finished", "collapsed", "diverged", "unfinished", "diverged", "missing"]
    assert [outcome_of(workdir_of(tmp_path, run), run).value for run in runs] == expected
    rows = collect(tmp_path, Plan(STUDY, "", tuple(runs)))
    assert [row["outcome"] for row in rows] == expected[:-1]  # a run that has not begun has no row
    assert rows[0]["loss"] == rows[0]["eval_text"] == pytest.approx(2.5)
    assert rows[0]["eval_caption_text"] == pytest.approx(2.4)
    assert rows[0]["train_loss_text_caption"] == 0.9
    assert rows[4]["reason"] == "the gradient was not finite"


def test_a_finished_run_whose_last_checkpoint_is_missing_is_not_finished(tmp_path):
    """A kill between the last log line and the last save."""
    run = make_run(0, params=1e6, tokens=1e7, budget=1e14)
    workdir = write_workdir(tmp_path, run, loss=2.5)
    (workdir / "checkpoints" / "40").mkdir(parents=True)
    assert outcome_of(workdir, run) is Outcome.UNFINISHED
    (workdir / "checkpoints" / str(STEPS)).mkdir()
    assert outcome_of(workdir, run) is Outcome.FINISHED


def test_tokens_and_flops_are_those_that_were_measured(tmp_path):
    run = make_run(0, params=1e6, tokens=1e7, budget=1e14)
    write_workdir(tmp_path, run, loss=2.5, config=True)
    (row,) = collect(tmp_path, Plan(STUDY, "", (run,)))
    tokens, images = STEPS * ROWS * LENGTH * 0.5, STEPS * ROWS * SLOTS * 0.25
    assert row["tokens"] == tokens
    assert row["budget"] == pytest.approx(6 * (0.6e6 * tokens + 1e7 * images))


@pytest.fixture
def study(tmp_path):
    """A study whose losses are on a surface; the largest budget is held out and has one run that is still to come."""
    law = SURFACES["chinchilla"]
    points = isoflop_grid(law, sizes=6)
    largest = points.budget.max()
    runs = [
        make_run(i, params=points.params[i], tokens=points.tokens[i], budget=points.budget[i],
                 held_out=bool(points.budget[i] == largest))
        for i in range(len(points))
    ]  # fmt: skip
    write_plan(tmp_path, Plan(STUDY, "", tuple(runs)))
    for run in runs[:-1]:
        collapsed = run.id == "r3"
        loss = 9.0 if collapsed else float(law.loss(run.params, run.tokens))
        write_workdir(tmp_path, run, loss=loss, variance=1e-5 if collapsed else 0.5)
    write_table(tmp_path, collect(tmp_path, Plan(STUDY, "", tuple(runs))))
    return tmp_path


def test_a_study_is_fitted_without_held_out_and_collapsed_runs(study):
    law = SURFACES["chinchilla"]
    table = pyarrow.parquet.read_table(study / "points.parquet")
    assert table.num_rows == 41
    assert (study / "points.csv").read_text().startswith('"id","outcome"')
    analysis = analyze(study, None, losses=("loss",), options=FitOptions(bootstraps=10))
    assert analysis.notes == ("left out: 1 runs that are collapsed",)
    found = fit_json(analysis)
    assert found["points"] == 35
    assert found["vpnls"]["alpha"] == pytest.approx(law.alpha, rel=1e-5)
    held_out = found["held_out"]["points"]
    assert [one["loss"] is None for one in held_out] == [False] * 5 + [True]
    for one in held_out:
        assert one["predicted"] == pytest.approx(float(law.loss(one["params"], one["tokens"])), rel=1e-5)


def test_several_losses_are_fitted_separately_and_jointly(study):
    names = ("eval_caption_text", "eval_text")
    found = fit_json(analyze(study, None, losses=names, options=FitOptions(bootstraps=0)))
    assert tuple(found["losses"]) == tuple(found["joint"]) == names
    assert found["joint"]["eval_text"]["alpha"] == pytest.approx(SURFACES["chinchilla"].alpha, rel=1e-4)
    with pytest.raises(UserError, match="no column nothing"):
        analyze(study, None, losses=("nothing",), options=FitOptions())


def test_a_study_without_runs(tmp_path):
    write_plan(tmp_path, Plan(STUDY, "", (make_run(0, params=1e6, tokens=1e7, budget=1e14),)))
    with pytest.raises(UserError, match="No run of"):
        write_table(tmp_path, [])
    with pytest.raises(UserError, match="scaling collect"):
        analyze(tmp_path, None, losses=("loss",), options=FitOptions())
    assert dataclasses.asdict(STUDY)["held_out"] is False
