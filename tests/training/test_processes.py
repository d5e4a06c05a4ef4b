"""Two processes with four devices each, connected by jax.distributed on this machine."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from emu_jax.checkpoints.params import load_params
from emu_jax.training.log import read_metrics
from tests.hosts import start_hosts

pytestmark = pytest.mark.e2e


def start(workdir: Path, *, steps: int, count: int, root: Path, slow: float = 0.0) -> list[subprocess.Popen]:
    """Start `count` processes with eight devices in total."""
    words = [sys.executable, "-m", "tests.training.toy_run", str(workdir), str(steps), "--slow", str(slow)]
    return start_hosts(words, count=count, devices=8 // count, root=root)


def finish(processes: list[subprocess.Popen]) -> list[str]:
    ends = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), [err[-3000:] for _, err in ends]
    return [out for out, _ in ends]


def parameters(workdir: Path, step: int):
    return load_params(workdir / "checkpoints" / str(step))


def test_two_processes_equal_one_and_each_resumes_the_other(tmp_path, root):
    two, one = tmp_path / "two", tmp_path / "one"
    finish(start(two, steps=20, count=2, root=root))
    finish(start(one, steps=20, count=1, root=root))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), parameters(two, 20), parameters(one, 20)
    )
    records = [[r for r in read_metrics(path) if "loss" in r] for path in (two, one)]
    np.testing.assert_allclose(*([r["loss"] for r in run] for run in records), rtol=1e-5)
    ends = [next(r["eval/norm"] for r in reversed(read_metrics(path)) if "eval/norm" in r) for path in (two, one)]
    np.testing.assert_allclose(*ends, rtol=1e-5)
    states = sorted(path.name for path in (two / "checkpoints" / "20" / "data").glob("process_*"))
    assert states == ["process_0-of-2.json", "process_1-of-2.json"]

    # Saved by two processes and resumed by one, and the reverse.
    finish(start(two, steps=30, count=1, root=root))
    finish(start(one, steps=30, count=2, root=root))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), parameters(two, 30), parameters(one, 30)
    )
    assert json.loads((one / "checkpoints" / "30" / "data" / "process_1-of-2.json").read_text())["state"] == {
        "index": 30
    }


def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path, root):
    processes = start(tmp_path, steps=400, count=2, root=root, slow=0.1)
    while all(p.poll() is None for p in processes) and not any("loss" in r for r in read_metrics(tmp_path)):
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    outs = finish(processes)
    stopped = {int(re.search(r"^step (\d+)", out, re.MULTILINE)[1]) for out in outs}  # gloo prints to stdout too
    assert len(stopped) == 1
    assert stopped.pop() < 400
