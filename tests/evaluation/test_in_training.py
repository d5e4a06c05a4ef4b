"""Benchmarks and held-out losses of a training run on two processes equal those of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from emu_jax.data.chat_layout import SYSTEM_IMAGE
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.evaluation.prompts import VQA_REQUEST
from emu_jax.training.log import read_metrics
from tests.data.conftest import make_set
from tests.evaluation.layouts import write_layout

CONFIG = """
from configs import common

def get_config():
    config = common.base("emu_tiny", steps=2, batch_size=8, length=48, max_images=3)
    config.model.vision.update(dict(image_size=8, patch_size=4, width=8, num_layers=1, num_heads=2, mlp_dim=8))
    config.model.causal_former.update(dict(width=8, num_heads=2, head_dim=4, mlp_dim=8))
    config.model.decoder.update(dict(width=8, num_layers=1, num_heads=2, num_kv_heads=2, mlp_dim=8, max_length=512))
    config.data.batch.image_size = 8
    config.data.pool = 16
    config.data.sets = common.sets(dict(path="{sets}/pairs", name="pairs"))
    config.tokenizer = "{sets}/t.model"
    config.train.optimizer.learning_rate = 1e-12  # the packed rows of two processes are others
    config.train.checkpoint.every_steps = 2
    config.train.mesh.fsdp = -1  # parameters are sharded over both processes
    config.train.evaluate_every = 1
    config.evaluation.sets = common.held_out(dict(path="{sets}/pages", name="held_out"))
    config.evaluation.batches = 1
    config.evaluation.tasks = ({"name": "visdial", "limit": 2}, {"name": "vqav2", "limit": 2, "shots": 1})
    config.evaluation.data = "{sets}/benchmarks"
    return config
"""


def train(config: Path, workdir: Path, *, processes: int, root: Path) -> list[dict[str, float]]:
    """Return the records of the evaluations of a run on four devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    devices = f"--xla_force_host_platform_device_count={4 // processes}"
    environ = os.environ | {"XLA_FLAGS": devices, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    if processes > 1:
        environ |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    command = [sys.executable, "-m", "emu_jax", "train", f"--config={config}", f"--workdir={workdir}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": root}
    running = [subprocess.Popen(command, env=environ | {"JAX_PROCESS_ID": str(i)}, **pipes) for i in range(processes)]
    ends = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [0] * processes, [err[-3000:] for _, err in ends]
    return [record for record in read_metrics(workdir) if "eval/held_out/loss" in record]


@pytest.mark.e2e
def test_two_processes_evaluate_as_one(tmp_path, root):
    for name, first in (("pairs", 0), ("pages", 300)):
        make_set(tmp_path, name, first)
    lines = [SYSTEM_IMAGE, VQA_REQUEST, "number 1 and on and on end"]
    train_tokenizer(lines * 9, tmp_path / "t.model", vocab_size=400)
    for task in ("visdial", "vqav2"):
        write_layout(task, tmp_path / "benchmarks")
    config = tmp_path / "small.py"
    config.write_text(CONFIG.replace("{sets}", str(tmp_path)))
    one, two = (train(config, tmp_path / f"run{n}", processes=n, root=root) for n in (1, 2))
    assert [record["step"] for record in one] == [record["step"] for record in two] == [1, 2]
    for first, second in zip(one, two, strict=True):
        names = {name for name in first if name.startswith("eval/")}
        assert names == {name for name in second if name.startswith("eval/")}
        assert {"eval/visdial/MRR", "eval/vqav2/overall", "eval/held_out/text", "eval/held_out/regression"} <= names
        for name in names:
            # Options of nearly equal likelihood swap ranks; held-out sets are packed into other rows.
            assert second[name] == pytest.approx(first[name], rel=0.1), name
    assert 1 < one[0]["eval/visdial/mean_rank"] < 100
