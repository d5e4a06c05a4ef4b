"""Commands that are killed and started again, and two processes, give the files of one uninterrupted run."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emu_jax.evaluation.catalog import TASK_NAMES
from tests.evaluation.layouts import write_layout
from tests.evaluation.wordnet import write_wordnet

FAST = ("vqav2", "vizwiz", "visdial", "msvd_qa", "mmvet")  # one of each predictor of texts and rankings
ALL = pytest.mark.parametrize(
    "tasks",
    [
        pytest.param(FAST, marks=pytest.mark.e2e, id="fast"),
        pytest.param(tuple(name for name in TASK_NAMES if name not in FAST), marks=pytest.mark.slow, id="rest"),
    ],
)

# The command, killed by SIGKILL as soon as some examples of the task are predicted, and not all.
KILLED = """
import contextlib, os, signal, sys
from emu_jax.cli import evaluate

@contextlib.contextmanager
def progress(name):
    def update(done, total):
        if 0 < done < total:
            os.kill(os.getpid(), signal.SIGKILL)
    yield update

evaluate.count_progress = progress
evaluate.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def environment(user_environment, tmp_path_factory, root) -> dict[str, str]:
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "JAX_PLATFORMS": "cpu"}
    cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    wordnet = write_wordnet(tmp_path_factory.mktemp("wordnet") / "nltk_data")
    return {**user_environment, **cache, "PYTHONPATH": str(root), "NLTK_DATA": str(wordnet)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for task in TASK_NAMES:
        write_layout(task, folder)
    return folder


@pytest.fixture(scope="module")
def start(model_directory, clip, data, environment, root):
    def process(tasks, out: Path, *program: str, **variables: str) -> subprocess.Popen[str]:
        words = ["--checkpoint", model_directory, "--task", ",".join(tasks), "--data", data, "--output", out]
        words += ["--batch-size", "1", "--clip", clip, "--steps", "2", "--sampler", "ddim"]
        line = [sys.executable, *(program or ("-m", "emu_jax", "evaluate")), *map(str, words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, cwd=root, env=environment | variables, **pipes)

    return process


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    made: dict[tuple[str, ...], Path] = {}

    def run(tasks: tuple[str, ...]) -> Path:
        if tasks not in made:
            made[tasks] = tmp_path_factory.mktemp("uninterrupted")
            finish(start(tasks, made[tasks]))
        return made[tasks]

    return run


def finish(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=900)
    assert process.returncode == 0, error[-3000:]
    return out


def files(folder: Path) -> dict[str, bytes]:
    """Return the files of a task by name, but not the report, which repeats them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "report.html"
    }


def assert_same_files(one: Path, other: Path, tasks: tuple[str, ...]) -> None:
    for task in tasks:
        found, expected = files(one / task), files(other / task)
        assert found.keys() == expected.keys() >= {"predictions.jsonl", "scores.json"}
        for name in expected:
            assert found[name] == expected[name], (task, name)


@pytest.mark.e2e
def test_kill_and_resume(uninterrupted, start, tmp_path):
    process = start(FAST, tmp_path)
    deadline = time.monotonic() + 500
    partial = tmp_path / "visdial" / "predictions.jsonl"
    while not (partial.is_file() and partial.read_text()):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "visdial" / "scores.json").exists()
    assert "per_answer_type/other" in finish(start(FAST, tmp_path))
    assert_same_files(tmp_path, uninterrupted(FAST), FAST)


@pytest.mark.slow
@ALL
def test_each_task_is_resumed_after_a_kill(tasks, uninterrupted, start, tmp_path):
    for task in tasks:
        process = start([task], tmp_path, "-c", KILLED)
        _, error = process.communicate(timeout=900)
        assert process.returncode == -signal.SIGKILL, error[-3000:]
        lines = (tmp_path / task / "predictions.jsonl").read_text().splitlines()
        assert len(lines) == 1
        assert not (tmp_path / task / "scores.json").exists()
        with (tmp_path / task / "predictions.jsonl").open("a") as file:
            file.write(lines[0][: len(lines[0]) // 2])  # a line that the kill truncated
    finish(start(tasks, tmp_path))
    assert_same_files(tmp_path, uninterrupted(tasks), tasks)


@ALL
def test_two_processes_score_as_one(tasks, uninterrupted, start, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    for process in [start(tasks, tmp_path, **together, JAX_PROCESS_ID=str(i)) for i in range(2)]:
        finish(process)
    assert_same_files(tmp_path, uninterrupted(tasks), tasks)
