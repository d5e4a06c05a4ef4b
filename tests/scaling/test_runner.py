"""A study is run by `train` itself: killed, resumed, branched."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from emu_jax.checkpoints.params import load_params
from emu_jax.cli import scaling
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.errors import UserError
from emu_jax.scaling.folder import read_plan, workdir_of
from emu_jax.scaling.points import read_table
from emu_jax.scaling.progress import Outcome, outcome_of
from emu_jax.scaling.runner import run_all, slice_of, unfinished
from emu_jax.training.log import read_metrics
from tests.data.conftest import make_set

CONFIG = """
from configs import common

def get_config():
    config = common.base("emu_tiny", steps=8, batch_size=4, length=48, max_images=3)
    config.model.vision.update(dict(image_size=8, patch_size=4))
    config.data.batch.image_size = 8
    config.data.pool = 16
    config.data.sets = common.sets(dict(path="{pairs}", name="pairs"))
    config.tokenizer = "{tokenizer}"
    config.train.checkpoint.every_steps = 4
    config.train.log_every = 2
    config.train.mesh.fsdp = 1
    return config
"""
STUDY = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(
        config="{config}", form="fixed_tokens", widths=(16,), budgets=(), tokens=(1920.0, 3840.0), seeds=(0,),
        ladder=dict(width_per_layer=16.0, head_dim=8), warmup_steps=2, min_steps=4, cooldown_fraction=0.4,
        learning_rate=1e-2, base_width=16, hardware=dict(name="test", flops_per_second=1e9),
        overrides=("train.max_skipped_in_row=3",),
    ))
"""


@pytest.fixture(scope="module")
def study_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    pairs = make_set(folder, "pairs", 0)
    train_tokenizer([f"number {n} and on and on end" for n in range(200)], folder / "t.model", vocab_size=300)
    config = CONFIG.replace("{pairs}", str(pairs)).replace("{tokenizer}", str(folder / "t.model"))
    (folder / "base.py").write_text(config)
    (folder / "study.py").write_text(STUDY.replace("{config}", str(folder / "base.py")))
    return folder / "study.py"


def plan(study_file, study):
    scaling.main(["plan", f"--config={study_file}", f"--study={study}"])
    return read_plan(study)


def start(study, root, environment):
    words = [sys.executable, "-m", "emu_jax", "scaling", "run", f"--study={study}"]
    return subprocess.Popen(words, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.e2e
def test_a_killed_study_resumes_and_its_branch_equals_a_run_of_its_own(study_file, tmp_path, root, user_environment):
    """20 steps of the second run are those of a run that was never branched or killed, bit for bit."""
    environment = user_environment | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    first, second = plan(study_file, tmp_path / "study").runs
    assert (first.steps, first.cooldown_from, second.start, second.steps) == (10, 6, 6, 20)

    process = start(tmp_path / "study", root, environment)
    workdir = workdir_of(tmp_path / "study", first)
    deadline = time.monotonic() + 120
    while not (workdir / "checkpoints" / "4").is_dir() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)  # `train` runs on, and holds the lock
    process.wait()
    again = start(tmp_path / "study", root, environment)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert unfinished(tmp_path / "study", [first, second]) == []
    assert min(record["step"] for record in read_metrics(workdir_of(tmp_path / "study", second))) > second.start

    alone = tmp_path / "alone"
    words = [sys.executable, "-m", "emu_jax", "train", *second.flags(), f"--workdir={alone}"]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    one, other = (load_params(path / "checkpoints" / "20") for path in (alone, workdir_of(tmp_path / "study", second)))
    jax.tree.map(np.testing.assert_array_equal, one, other)

    scaling.main(["collect", f"--study={tmp_path / 'study'}"])
    rows = read_table(tmp_path / "study" / "points.parquet")
    assert rows["id"] == [first.id, second.id]
    assert set(rows["outcome"]) <= {"finished", "collapsed"}  # images of one color teach the causal former nothing
    assert min(rows["loss"]) > 0


@pytest.mark.e2e
def test_a_diverged_run_is_marked_and_the_study_continues(study_file, tmp_path, run_command):
    scaling.main(
        [
            "plan",
            f"--config={study_file}",
            f"--study={tmp_path}",
            "--config.learning_rate=1000",
            "--config.tokens=(3840.0,)",
        ]
    )
    done = run_command("scaling", "run", f"--study={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "diverged" in done.stdout
    (run,) = read_plan(tmp_path).runs
    assert outcome_of(workdir_of(tmp_path, run), run) is Outcome.DIVERGED
    assert "not finite" in json.loads((workdir_of(tmp_path, run) / "outcome.json").read_text())["reason"]


@pytest.mark.e2e
def test_a_run_that_fails_for_another_reason_stops_the_study_and_names_its_log(study_file, tmp_path):
    runs = slice_of(plan(study_file, tmp_path), index=0, of=1)
    broken = [dataclasses.replace(run, overrides={"train.nothing": "1"}) for run in runs]
    with pytest.raises(UserError, match=r"failed \(exit code 2\).*train\.log"):
        run_all(tmp_path, broken, say=lambda line: None)
