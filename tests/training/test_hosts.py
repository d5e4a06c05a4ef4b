"""The real stages on several processes: losses, restores onto other process counts, kills and signals."""

import signal

import numpy as np
import pytest

from tests.training.host_runs import World, fingerprints, finish, kill, records, start, wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World.make(tmp_path_factory.mktemp("world"))


def losses(workdir) -> list[float]:
    return [one[name] for one in records(workdir) for name in sorted(one) if "loss" in name and one[name] is not None]


@pytest.mark.parametrize(("stage", "tensor"), [("pretrain", 2), ("vae", 1)])
def test_two_processes_of_two_devices_equal_one(world, stage, tensor, tmp_path, root):
    one, two = tmp_path / "one", tmp_path / "two"
    # A reader packs rows from its own pool. With one document per row, the batches have the same rows.
    words = ("--config.data.pool=1",) if stage == "pretrain" else ()
    finish(start(world, stage, one, *words, root=root))
    finish(start(world, stage, two, *words, root=root, processes=2, devices=2, tensor=tensor))
    np.testing.assert_allclose(losses(two), losses(one), rtol=2e-4)
    # Saved by two processes, and resumed by one.
    finish(start(world, stage, two, "--config.train.steps=12", *words, root=root))
    assert records(two)[-1]["step"] == 12


def test_a_killed_run_continues_its_log_and_parameters_bit_for_bit(world, tmp_path, root):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(start(world, "pretrain", undisturbed, root=root))
    running = start(world, "pretrain", killed, root=root)
    wait_for(lambda: (killed / "checkpoints" / "4").exists(), running)  # one step after the log line of step 3
    kill(running)
    finish(start(world, "pretrain", killed, root=root))
    assert records(killed) == records(undisturbed)
    assert fingerprints(killed, 8) == fingerprints(undisturbed, 8)


def test_a_killed_process_ends_the_other_with_one_line(world, tmp_path, root):
    words = ("--config.train.steps=100000", "--config.train.wait.seconds=20")
    running = start(world, "pretrain", tmp_path, *words, root=root, processes=2)
    wait_for(lambda: (tmp_path / "checkpoints" / "2").exists(), running)
    kill(running[1:])
    (error,) = finish(running[:1], code=1)
    assert "Traceback" not in error
    line = error.strip().splitlines()[-1]
    assert line.startswith("error: Process 0 lost its connection in ")
    assert "process 1 does not respond" in line


def test_a_stopped_process_is_named_and_a_signal_ends_the_wait(world, tmp_path, root):
    words = ("--config.train.steps=100000", "--config.train.wait.seconds_after_signal=4")
    running = start(world, "pretrain", tmp_path, *words, root=root, processes=2)
    wait_for(lambda: (tmp_path / "checkpoints" / "2").exists(), running)
    running[1].send_signal(signal.SIGSTOP)
    running[0].send_signal(signal.SIGINT)
    (error,) = finish(running[:1], code=1)
    running[1].send_signal(signal.SIGCONT)
    line = error.strip().splitlines()[-1]
    assert line.startswith("error: process 0 received a signal to stop, and then waited 4 s in ")
    assert "process 1 does not respond" in line
    finish(running[1:], code=None)


def test_a_signal_to_one_process_saves_on_both(world, tmp_path, root):
    running = start(world, "visual_decoder", tmp_path, "--config.train.steps=100000", root=root, processes=2)
    wait_for(lambda: (tmp_path / "checkpoints" / "2").exists(), running)
    running[1].send_signal(signal.SIGTERM)
    errors = finish(running)
    assert "and saved; run the same command again to resume" in errors[0]
