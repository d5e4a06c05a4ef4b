import dataclasses
import json
import logging
import os
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
from emu_jax.training.collapse import CollapseWatch
from emu_jax.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from emu_jax.training.log import read_metrics
from emu_jax.training.loop import train
from tests.training.toy import ToyData, ToyStage

STEPS = 60


def start(workdir: Path, *, slow: float = 0.0, gate: int | None = None, root: Path) -> subprocess.Popen:
    """The toy in a process of its own, on one device; it waits for ever before step `gate`."""
    words = [sys.executable, "-m", "tests.training.toy_run", str(workdir), str(STEPS), "--slow", str(slow)]
    words += ["--gate", str(gate)] if gate is not None else []
    environ = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(root)}
    return subprocess.Popen(words, cwd=root, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def losses(workdir: Path) -> dict[int, float]:
    """step -> loss; every step must be told once."""
    records = [record for record in read_metrics(workdir) if "loss" in record]
    found = {record["step"]: record["loss"] for record in records}
    assert len(found) == len(records)
    return found


def assert_same_end(one: Path, other: Path, *, step: int = STEPS) -> None:
    mine, theirs = (load_params(path / "checkpoints" / str(step)) for path in (one, other))
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    assert losses(one) == losses(other)
    data = [json.loads(next((p / "checkpoints" / str(step) / "data").glob("*.json")).read_text()) for p in (one, other)]
    assert data[0] == data[1] == {"index": step}


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
def test_killed_at_ten_random_moments_it_ends_bit_for_bit_as_if_undisturbed(undisturbed, tmp_path, root):
    """Each life may come five steps further, which is one save: no try reaches the end, however slow the machine is."""
    rng = np.random.default_rng(int(time.time()))
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
    assert_same_end(undisturbed, tmp_path)


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_finishes_the_step_saves_and_ends_well(undisturbed, tmp_path, root, name):
    process = start(tmp_path, slow=0.05, root=root)
    while process.poll() is None and max(losses(tmp_path), default=0) < 3:
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"stopped_by {name}" in out
    assert "the same command goes on" in err
    stopped = int(out.split()[1])
    assert 3 <= stopped < STEPS
    assert (tmp_path / "checkpoints" / str(stopped)).is_dir()
    process = start(tmp_path, root=root)
    assert process.wait(timeout=300) == 0, process.communicate()
    assert_same_end(undisturbed, tmp_path)


def quick(steps: int = 12, **fields) -> TrainConfig:
    base = TrainConfig(
        steps=steps,
        log_every=4,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        checkpoint=CheckpointConfig(every_steps=4),
    )
    return dataclasses.replace(base, **fields)


def test_going_on_on_another_mesh_with_a_longer_run_traced_once(tmp_path, caplog):
    stage, evaluated = ToyStage(), []

    def evaluation(step, params):
        evaluated.append(step)
        return {"norm": float(np.linalg.norm(params["head"]["kernel"]))}

    train(quick(8), stage=stage, data=ToyData(stage), workdir=tmp_path, quiet=True)
    data = ToyData(stage)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        result = train(
            quick(20, evaluate_every=10, mesh=MeshConfig(2, 2, 2)),
            stage=stage,
            data=data,
            workdir=tmp_path,
            quiet=True,
            evaluations=[evaluation],
        )
    assert (result.step, result.stopped_by) == (20, None)
    assert data.seen[:12] == list(range(8, 20))
    assert evaluated == [10, 20]
    assert read_metrics(tmp_path)[-1]["eval/norm"] > 0
    compiled = [r for r in caplog.records if "Finished tracing" in r.message and "train_step" in r.message]
    assert len(compiled) == 1
    kernel = result.params["tower"]["kernel"]
    assert {shard.data.size * 4 for shard in kernel.addressable_shards} == {kernel.size}  # over fsdp 2 x tensor 2
    again = train(quick(20), stage=stage, data=ToyData(stage), workdir=tmp_path, quiet=True)
    jax.tree.map(np.testing.assert_array_equal, again.params, result.params)


def test_a_warm_start_takes_parameters_and_nothing_else(tmp_path):
    stage = ToyStage()
    first = train(quick(4), stage=stage, data=ToyData(stage), workdir=tmp_path / "a", quiet=True)
    frozen = ToyStage(trainable=("^head/",))
    config = quick(4, warm_start=str(tmp_path / "a" / "checkpoints" / "4"))
    second = train(config, stage=frozen, data=ToyData(stage), workdir=tmp_path / "b", quiet=True)
    jax.tree.map(np.testing.assert_array_equal, second.params["tower"], first.params["tower"])
    assert second.step == 4


def test_non_finite_gradients_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(tmp_path):
    stage = ToyStage(poison=50.0)
    data = ToyData(stage, bad=range(6, 100))
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row.* last good checkpoint is step \d+ "):
        train(quick(40, max_skipped_in_row=3), stage=stage, data=data, workdir=tmp_path, quiet=True)


def test_bad_data_and_bad_shapes_are_told_in_one_line(tmp_path):
    stage = ToyStage()

    class Short(ToyData):
        def __next__(self):
            if self.index == 2:
                raise StopIteration
            return super().__next__()

    class Misshapen(ToyData):
        def __next__(self):
            return super().__next__() | {"mask": np.zeros(3, np.float32)}

    with pytest.raises(UserError, match="The data ended"):
        train(quick(), stage=stage, data=Short(stage), workdir=tmp_path / "a", quiet=True)
    with pytest.raises(UserError, match=r"The data's mask is float32\[3\]"):
        train(quick(), stage=stage, data=Misshapen(stage), workdir=tmp_path / "b", quiet=True)
    with pytest.raises(UserError, match="does not divide over 8 devices"):
        train(quick(), stage=ToyStage(batch_size=12), data=ToyData(stage), workdir=tmp_path / "c", quiet=True)
    with pytest.raises(UserError, match="matches no parameter; the model's parts are"):
        train(quick(), stage=ToyStage(trainable=("^hed/",)), data=ToyData(stage), workdir=tmp_path / "d", quiet=True)


def test_collapse_is_told_once_for_each_fall():
    watch = CollapseWatch(variance_ratio=0.02, least_rank=1.5)
    tell = lambda variance, rank=9.0: watch.check(
        {"visual_embedding_variance": variance, "visual_embedding_rank": rank, "visual_embedding_cosine": 0.5}
    )
    assert tell(0.1) is None
    assert tell(1.0) is None
    assert "COLLAPSE" in tell(0.01)
    assert tell(0.005) is None
    assert tell(0.5) is None
    assert "effective rank 1.20" in tell(0.5, rank=1.2)
    assert watch.check({"loss": 1.0}) is None
