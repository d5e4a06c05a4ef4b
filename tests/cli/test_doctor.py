"""`doctor`, and how the processes of a run connect."""

import os
import socket
import subprocess
import sys

import pytest

from emu_jax.cli import doctor
from emu_jax.errors import UserError
from emu_jax.training import diagnostics
from emu_jax.training.processes import start_processes


def test_a_machine_without_problems(capsys, tmp_path):
    doctor.main(["--mesh=data:2,fsdp:-1", f"--workdir={tmp_path / 'run'}"])
    out = capsys.readouterr().out
    assert "mesh data:2 x fsdp:4 x tensor:1" in out
    assert "GB/s" in out
    assert "MB/s" in out
    assert out.endswith("OK\n")
    assert list((tmp_path / "run").iterdir()) == []


def test_problems_are_reported(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="1"):
        doctor.main([f"--workdir={tmp_path / 'file' / 'run'}"])
    out = capsys.readouterr().out
    assert "PROBLEM: this is a TPU machine, but JAX finds no TPU" in out
    assert "pip install -c constraints.txt -e '.[tpu]'" in out
    assert "cannot write to" in out
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d")
    assert "3 of 4 workers are missing" in " ".join(diagnostics.find_problems())


def test_a_negative_mesh_size_is_an_error() -> None:
    with pytest.raises(UserError, match=r"at 'data:--1'.*data:1,fsdp:-1,tensor:1"):
        doctor.main(["--mesh=data:--1"])


def two_processes(root, *, extra=({}, {}), count=2, wait=60) -> list[subprocess.CompletedProcess]:
    """Start `count` of two doctors with four simulated devices each; `extra` is added to their environments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for i in range(count):
        environ = os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(i),
        }
        words = [sys.executable, "-m", "emu_jax", "doctor", "--mesh=fsdp:-1", f"--wait={wait}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(words, cwd=root, env=environ | extra[i], **pipes))
    ends = [process.communicate(timeout=300) for process in processes]
    return [subprocess.CompletedProcess(p.args, p.returncode, *end) for p, end in zip(processes, ends, strict=True)]


@pytest.mark.e2e
def test_two_hosts_with_different_versions(root, tmp_path):
    other = tmp_path / "site" / "libtpu-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: libtpu\nVersion: 0.0.1\n")
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    for i, done in enumerate(two_processes(root, extra=({}, {"PYTHONPATH": path}), wait=200)):
        assert done.returncode == 1, done.stderr
        assert f"process {i} of 2, 4 of 8 devices" in done.stdout
        assert "mesh data:1 x fsdp:8 x tensor:1" in done.stdout
        assert "PROBLEM: process 1 has other versions than process 0 (in parentheses): libtpu 0.0.1 (" in done.stdout


@pytest.mark.e2e
def test_a_worker_that_does_not_connect(root):
    (done,) = two_processes(root, count=1, wait=8)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "error: not all processes of the run connected within 8 s. Start the same"
    )


@pytest.mark.parametrize(
    ("environment", "calls"),
    [
        ({}, []),
        ({"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"},
         [(4, 3)]),
        ({"TPU_WORKER_ID": "0", "JAX_PLATFORMS": "tpu"}, [(None, None)]),  # JAX reads the machine's metadata
        ({"TPU_WORKER_ID": "0", "JAX_PLATFORMS": "cpu"}, []),
        ({"SLURM_STEP_NUM_TASKS": "8", "JAX_PLATFORMS": "cuda"}, [(None, None)]),
    ],
)  # fmt: skip
def test_which_processes_connect(monkeypatch, environment, calls):
    for name in (
        "JAX_COORDINATOR_ADDRESS",
        "JAX_NUM_PROCESSES",
        "TPU_WORKER_ID",
        "SLURM_STEP_NUM_TASKS",
        "JAX_PLATFORMS",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    connected = []
    initialize = lambda *, num_processes, process_id, initialization_timeout: connected.append(
        (num_processes, process_id)
    )
    monkeypatch.setattr("jax.distributed.initialize", initialize)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu")
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    start_processes()
    assert connected == calls
