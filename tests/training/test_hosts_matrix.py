"""All stages on 1, 2 and 4 processes of 1 and 2 devices, and kills at random moments. Run it by hand; it takes an hour.

pytest tests/training/test_hosts_matrix.py -m slow -p no:xdist
"""

import random
import signal
import time

import numpy as np
import pytest

from tests.training.host_runs import STAGES, World, fingerprints, finish, kill, records, start, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
EMU_STAGES = STAGES[:2]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory, root):
    """Return the workdir of a run of a stage on some processes; each run is done once."""
    done = {}

    def workdir(stage, *words, processes=1, devices=1, tensor=1):
        key = (stage, words, processes, devices, tensor)
        if key not in done:
            done[key] = tmp_path_factory.mktemp(stage) / "run"
            sizes = {"processes": processes, "devices": devices, "tensor": tensor}
            finish(start(world, stage, done[key], *words, root=root, **sizes))
        return done[key]

    return workdir


def losses(workdir):
    return [one[name] for one in records(workdir) for name in sorted(one) if "loss" in name and one[name] is not None]


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_restores(undisturbed, world, stage, processes, devices, tensor, root):
    if tensor > devices or (processes, devices) == (1, 1):
        pytest.skip("the tensor axis is within a process, and one device is the reference")
    # A reader packs rows from its own pool. With one document per row, the batches have the same rows.
    words = ("--config.data.pool=1",) if stage in EMU_STAGES else ()
    one = undisturbed(stage, *words)
    several = undisturbed(stage, *words, processes=processes, devices=devices, tensor=tensor)
    np.testing.assert_allclose(losses(several), losses(one), rtol=1e-3)
    for other in (1, 4):
        if other != processes:
            more = ("--config.train.steps=10", *words) if other == 1 else ("--config.train.steps=12", *words)
            finish(start(world, stage, several, *more, root=root, processes=other))
            assert records(several)[-1]["step"] == 10 if other == 1 else 12


@pytest.mark.parametrize("seed", range(20))
def test_kills_at_random_moments(undisturbed, world, seed, tmp_path, root):
    """Kill one process, or all, at a random moment of a run, twice; then let it end."""
    rng = random.Random(seed)
    stage = STAGES[seed % 4]
    sizes = {"processes": 1 + seed // 4 % 2, "devices": 1 + seed // 8 % 2}
    calm = undisturbed(stage, **sizes)
    for _ in range(2):
        running = start(world, stage, tmp_path, root=root, **sizes)
        time.sleep(rng.uniform(4, 40))
        kill(running[rng.randrange(len(running)) :])
        finish(running, code=None)
    finish(start(world, stage, tmp_path, root=root, **sizes))
    assert fingerprints(tmp_path, 8) == fingerprints(calm, 8)
    assert records(tmp_path) == records(calm)


@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_to_one_process_saves_on_all(world, stage, tmp_path, root):
    running = start(world, stage, tmp_path, "--config.train.steps=100000", root=root, processes=2)
    wait_for(lambda: (tmp_path / "checkpoints" / "2").exists(), running)
    running[1].send_signal(signal.SIGTERM)
    assert "and saved; run the same command again to resume" in finish(running)[0]
