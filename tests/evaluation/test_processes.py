"""Whole commands: killed and started again, and two processes, give the files of one undisturbed run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.evaluation.layouts import write_layout

pytestmark = pytest.mark.e2e

TASKS = ("vqav2", "vizwiz", "visdial", "msvd_qa", "mmvet")
FILES = [f"{task}/{name}" for task in TASKS for name in ("predictions.jsonl", "scores.json")]


@pytest.fixture(scope="module")
def environment(user_environment, tmp_path_factory, root) -> dict[str, str]:
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "JAX_PLATFORMS": "cpu"}
    cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return {**user_environment, **cache, "PYTHONPATH": str(root)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for task in TASKS:
        write_layout(task, folder)
    return folder


def start(model: Path, data: Path, out: Path, environment: dict[str, str], root: Path) -> subprocess.Popen[str]:
    words = ["--checkpoint", model, "--task", ",".join(TASKS), "--data", data, "--output", out, "--batch-size", "1"]
    line = [sys.executable, "-m", "emu_jax", "evaluate", *map(str, words)]
    return subprocess.Popen(line, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error[-3000:]
    return out


@pytest.fixture(scope="module")
def undisturbed(model_directory, data, environment, root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    printed = finish(start(model_directory, data, out, environment, root))
    assert "per_answer_type/other" in printed
    return out


def test_kill_and_resume(undisturbed, model_directory, data, environment, root, tmp_path):
    process = start(model_directory, data, tmp_path, environment, root)
    deadline = time.monotonic() + 500
    partial = tmp_path / "visdial" / "predictions.jsonl"
    while not (partial.is_file() and partial.read_text()):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "visdial" / "scores.json").exists()
    finish(start(model_directory, data, tmp_path, environment, root))
    for name in FILES:
        assert (tmp_path / name).read_text() == (undisturbed / name).read_text(), name


def test_two_processes_score_as_one(undisturbed, model_directory, data, environment, root, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = environment | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [start(model_directory, data, tmp_path, together | {"JAX_PROCESS_ID": str(i)}, root) for i in range(2)]
    for process in processes:
        finish(process)
    for name in FILES:
        assert (tmp_path / name).read_text() == (undisturbed / name).read_text(), name
    assert not list(tmp_path.glob("*/predictions-*"))
    assert os.listdir(tmp_path)
