"""Checkpoints of the tiny Emu, written and read by two real processes of two CPU devices each."""

import os
import re
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e
SECONDS = 150  # far more than one needs; a process that hangs is killed then


def run(directory, *, processes, devices, mesh, root):
    """Return the fingerprint that each process prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(root),
    }
    if processes > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    words = [sys.executable, "-m", "tests.checkpoints.emu_processes", str(directory), *map(str, mesh)]
    pipes = {"cwd": root, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [subprocess.Popen(words, env=environment | {"JAX_PROCESS_ID": str(i)}, **pipes) for i in range(processes)]
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * processes, outputs
    return [re.search(r"^fingerprint (\w+)", output, re.MULTILINE)[1] for output in outputs]


def test_two_processes_of_two_devices_save_and_restore(tmp_path, root):
    saved = run(tmp_path, processes=2, devices=2, mesh=(2, 2), root=root)
    assert saved[0] == saved[1]
    assert run(tmp_path, processes=2, devices=2, mesh=(4, 1), root=root) == saved
    assert run(tmp_path, processes=1, devices=1, mesh=(1, 1), root=root) == saved[:1]
