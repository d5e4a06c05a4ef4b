"""The training loop on the toy stage: kills, signals, resuming, warm starts, checkpoints and errors."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from emu_jax.checkpoints.params import load_params
from emu_jax.errors import UserError
from emu_jax.sharding.mesh import MeshConfig
from emu_jax.training.config import CheckpointConfig, OptimizerConfig, Schedule, TrainConfig
from emu_jax.training.log import read_metrics
from emu_jax.training.loop import train
from tests.training.toy import ToyData, ToyStage

STEPS = 60


def start(workdir: Path, *, slow: float = 0.0, gate: int | None = None, root: Path) -> subprocess.Popen:
    """Start the toy run in its own process, on one device; it waits indefinitely before step `gate`."""
    words = [sys.executable, "-m", "tests.training.toy_run", str(workdir), str(STEPS), "--slow", str(slow)]
    words += ["--gate", str(gate)] if gate is not None else []
    environ = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(root)}
    return subprocess.Popen(words, cwd=root, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def losses(workdir: Path) -> dict[int, float]:
    """Return step -> loss; check that each step is logged once."""
    records = [record for record in read_metrics(workdir) if "loss" in record]
    found = {record["step"]: record["loss"] for record in records}
    assert len(found) == len(records)
    return found


def assert_same_end(found: Path, expected: Path, *, step: int = STEPS) -> None:
    params = [load_params(path / "checkpoints" / str(step)) for path in (found, expected)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert losses(found) == losses(expected)
    for path in (found, expected):
        (state,) = (path / "checkpoints" / str(step) / "data").glob("*.json")
        assert json.loads(state.read_text())["state"] == {"index": step}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, root) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed")
    process = start(workdir, root=root)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"step {STEPS} stopped_by None" in out
    return workdir


def test_a_run_learns_logs_and_saves(undisturbed):
    found = losses(undisturbed)
    assert sorted(found) == list(range(1, STEPS + 1))
    assert found[STEPS] < 0.8 * found[1]
    record = next(record for record in reversed(read_metrics(undisturbed)) if "loss" in record)
    assert {"loss/first", "gradient_norm/tower", "update_norm/head", "steps_per_second", "data_wait"} <= set(record)
    assert sorted(int(p.name) for p in (undisturbed / "checkpoints").iterdir()) == [50, 55, 60]
    assert list((undisturbed / "tensorboard").iterdir())


@pytest.mark.e2e
def test_a_run_killed_ten_times_ends_bit_for_bit_like_an_undisturbed_one(undisturbed, tmp_path, root):
    """Each attempt advances by at most five steps, which is one checkpoint, so that none reaches the end."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        newest = max(losses(tmp_path), default=0)
        process = start(tmp_path, slow=0.05, gate=newest + 5, root=root)
        while process.poll() is None and max(losses(tmp_path), default=0) <= newest:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.4))
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
    process = start(tmp_path, root=root)
    assert process.wait(timeout=300) == 0, process.communicate()
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_finishes_the_step_and_saves(undisturbed, tmp_path, root, name):
    process = start(tmp_path, slow=0.05, root=root)
    while process.poll() is None and max(losses(tmp_path), default=0) < 3:
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"stopped_by {name}" in out
    assert "run the same command again to resume" in err
    stopped = int(out.split()[1])
    assert 3 <= stopped < STEPS
    assert (tmp_path / "checkpoints" / str(stopped)).is_dir()
    process = start(tmp_path, root=root)
    assert process.wait(timeout=300) == 0, process.communicate()
    assert_same_end(tmp_path, undisturbed)


def short(steps: int = 12, **fields) -> TrainConfig:
    base = TrainConfig(
        steps=steps,
        log_every=4,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        checkpoint=CheckpointConfig(every_steps=4),
    )
    return dataclasses.replace(base, **fields)


def test_a_run_resumes_on_another_mesh_for_more_steps_and_is_traced_once(tmp_path, caplog):
    stage, evaluated = ToyStage(), []

    def evaluation(step, params):
        evaluated.append(step)
        return {"norm": float(np.linalg.norm(params["head"]["kernel"]))}

    train(short(8), stage=stage, data=ToyData(stage), workdir=tmp_path, quiet=True)
    data = ToyData(stage)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        result = train(
            short(20, evaluate_every=10, mesh=MeshConfig(2, 2, 2)),
            stage=stage,
            data=data,
            workdir=tmp_path,
            quiet=True,
            evaluations=[evaluation],
        )
    assert (result.step, result.stopped_by) == (20, None)
    assert data.read[:12] == list(range(8, 20))
    assert evaluated == [10, 20]
    assert read_metrics(tmp_path)[-1]["eval/norm"] > 0
    compiled = [r for r in caplog.records if "Finished tracing" in r.message and "train_step" in r.message]
    assert len(compiled) == 1
    kernel = result.params["tower"]["kernel"]
    assert {shard.data.size * 4 for shard in kernel.addressable_shards} == {kernel.size}  # over fsdp 2 x tensor 2
    again = train(short(20), stage=stage, data=ToyData(stage), workdir=tmp_path, quiet=True)
    jax.tree.map(np.testing.assert_array_equal, again.params, result.params)


def test_a_warm_start_uses_only_the_parameters(tmp_path):
    stage = ToyStage()
    first = train(short(4), stage=stage, data=ToyData(stage), workdir=tmp_path / "a", quiet=True)
    frozen = ToyStage(trainable=("^head/",))
    config = short(4, warm_start=str(tmp_path / "a" / "checkpoints" / "4"))
    second = train(config, stage=frozen, data=ToyData(stage), workdir=tmp_path / "b", quiet=True)
    jax.tree.map(np.testing.assert_array_equal, second.params["tower"], first.params["tower"])
    assert second.step == 4


def test_a_branch_of_a_wsd_run_is_the_run_of_that_length(tmp_path):
    """With a copy of the step where its cooldown begins, a shorter run ends with the same bits as without it."""

    def run(name, steps):
        wsd = OptimizerConfig(learning_rate=1e-2, schedule=Schedule.WSD, warmup_steps=2, cooldown_fraction=0.5)
        config = short(steps, optimizer=wsd, checkpoint=CheckpointConfig(every_steps=20, keep=1, keep_steps=(4,)))
        stage = ToyStage()
        return train(config, stage=stage, data=ToyData(stage), workdir=tmp_path / name, quiet=True)

    longer = run("long", 20)
    shutil.copytree(tmp_path / "long" / "checkpoints" / "4", tmp_path / "branch" / "checkpoints" / "4")
    branch, alone = run("branch", 8), run("alone", 8)
    assert (longer.step, branch.step) == (20, 8)
    assert min(record["step"] for record in read_metrics(tmp_path / "branch")) > 4
    jax.tree.map(np.testing.assert_array_equal, branch.params, alone.params)


@pytest.mark.parametrize(
    ("evaluate_every", "best_is_lowest", "expected"),
    [(2, True, {6, 8}), (2, False, {2, 10}), (4, True, {4, 8})],
)
def test_the_best_checkpoints_are_kept_by_the_evaluation_of_their_own_step(
    tmp_path, evaluate_every, best_is_lowest, expected
):
    stage, scores = ToyStage(), {2: 9.0, 4: 5.0, 6: 1.0, 8: 3.0, 10: 7.0, 12: 6.0}
    settings = {"best_metric": "eval/score", "keep_best": 2, "best_is_lowest": best_is_lowest}
    train(
        short(12, checkpoint=CheckpointConfig(every_steps=2, keep=1, **settings), evaluate_every=evaluate_every),
        stage=stage,
        data=ToyData(stage),
        workdir=tmp_path,
        quiet=True,
        evaluations=[lambda step, params: {"score": scores[step]}],
    )
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == expected | {12}


def test_named_steps_are_saved_and_kept(tmp_path: Path) -> None:
    stage = ToyStage()
    checkpoint = CheckpointConfig(every_steps=4, keep=1, keep_steps=(3, 7))
    train(short(12, checkpoint=checkpoint), stage=stage, data=ToyData(stage), workdir=tmp_path, quiet=True)
    saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert saved == [3, 7, 12]


def test_non_finite_gradients_stop_the_run_and_name_the_newest_checkpoint(tmp_path):
    stage = ToyStage(nan_above=50.0)
    data = ToyData(stage, bad=range(6, 100))
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row.* newest checkpoint is step \d+ "):
        train(short(40, max_skipped_in_row=3), stage=stage, data=data, workdir=tmp_path, quiet=True)


def test_invalid_data_and_shapes_are_one_clear_error(tmp_path):
    stage = ToyStage()

    class Short(ToyData):
        def __next__(self):
            if self.index == 2:
                raise StopIteration
            return super().__next__()

    class WrongShape(ToyData):
        def __next__(self):
            return super().__next__() | {"mask": np.zeros(3, np.float32)}

    class MissingArray(ToyData):
        def __next__(self):
            return {name: value for name, value in super().__next__().items() if name != "mask"}

    def run(stage, data, name):
        train(short(), stage=stage, data=data, workdir=tmp_path / name, quiet=True)

    with pytest.raises(UserError, match="The data ended"):
        run(stage, Short(stage), "a")
    with pytest.raises(UserError, match=r"The data's mask is float32\[3\]"):
        run(stage, WrongShape(stage), "b")
    with pytest.raises(UserError, match=r"The data has \['x', 'y'\], but the stage requires \['mask', 'x', 'y'\]"):
        run(stage, MissingArray(stage), "c")
    with pytest.raises(UserError, match="batch size 12 is not divisible by 8 devices"):
        run(ToyStage(batch_size=12), ToyData(stage), "d")
    with pytest.raises(UserError, match="matches no parameter; the model's parts are"):
        run(ToyStage(trainable=("^hed/",)), ToyData(stage), "e")
