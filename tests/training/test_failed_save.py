"""Saves that fail during a run: a full disk, and a folder that vanishes for a while."""

import dataclasses
import subprocess
import time

import pytest

from emu_jax.errors import UserError
from emu_jax.training.config import OnFailedSave
from emu_jax.training.log import read_metrics
from emu_jax.training.loop import train
from tests.training.toy import ToyData, ToyStage
from tests.training.toy_run import config


@pytest.fixture
def small_disk(tmp_path):
    """Return the folder of a file system of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system requires root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def run(tmp_path, folder, on_failed_save, actions):
    """Train 20 steps with a save every 5; `actions` are called after the evaluations of these steps."""
    run = config(20)
    checkpoint = dataclasses.replace(run.checkpoint, on_failed_save=on_failed_save)
    run = dataclasses.replace(run, checkpoint=checkpoint, evaluate_every=1)
    stage = ToyStage()

    def act(step, params):
        if step in actions:
            while step > 5 and not (folder / "5").exists() and folder.is_dir():  # saved in the background
                time.sleep(0.01)
            actions[step]()
        return {}

    return train(run, stage=stage, data=ToyData(stage), workdir=tmp_path / "run", checkpoints=folder, evaluations=[act])


def fill(folder):
    with open(folder / "filler", "wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_a_run_continues_after_a_save_on_a_full_disk(tmp_path, small_disk, capsys):
    checkpoints = small_disk / "checkpoints"
    actions = {8: lambda: fill(small_disk), 13: lambda: (small_disk / "filler").unlink()}
    result = run(tmp_path, checkpoints, OnFailedSave.CONTINUE, actions)
    assert result.step == 20
    error = capsys.readouterr().err
    (line,) = (line for line in error.splitlines() if "WARNING" in line and "Could not" in line)
    assert "No space left on device" in line or "RESOURCE_EXHAUSTED" in line
    assert "the last good checkpoint is step 5" in line
    assert steps_in(checkpoints) == [5, 15, 20]
    assert [record["step"] for record in read_metrics(tmp_path / "run") if "warning" in record] in ([10], [15])


def test_a_run_stops_at_a_full_disk_and_resumes(tmp_path, small_disk):
    checkpoints = small_disk / "checkpoints"
    with pytest.raises(UserError, match=r"the last good checkpoint is step 5\. Free disk space"):
        run(tmp_path, checkpoints, OnFailedSave.STOP, {8: lambda: fill(small_disk)})
    assert steps_in(checkpoints) == [5]
    (small_disk / "filler").unlink()
    assert run(tmp_path, checkpoints, OnFailedSave.STOP, {}).step == 20
    assert steps_in(checkpoints) == [10, 15, 20]


def test_a_run_continues_after_its_folder_was_away(tmp_path, capsys):
    checkpoints, away = tmp_path / "checkpoints", tmp_path / "away"

    def vanish():
        checkpoints.rename(away)
        checkpoints.write_text("not a folder")

    def come_back():
        checkpoints.unlink()
        away.rename(checkpoints)

    result = run(tmp_path, checkpoints, OnFailedSave.CONTINUE, {8: vanish, 13: come_back})
    assert result.step == 20
    error = capsys.readouterr().err
    assert "WARNING: Could not" in error
    assert steps_in(checkpoints) == [5, 15, 20], error
