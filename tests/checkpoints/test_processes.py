"""Checkpoints of the tiny Emu, written and read by two real processes of two CPU devices each."""

import re
import sys

import pytest

from tests.hosts import start_hosts

pytestmark = pytest.mark.e2e
SECONDS = 150  # far more than one needs; a process that hangs is killed then


def run(directory, *, processes, devices, mesh, root):
    """Return the fingerprint that each process prints."""
    words = [sys.executable, "-m", "tests.checkpoints.emu_processes", str(directory), *map(str, mesh)]
    running = start_hosts(words, count=processes, devices=devices, root=root)
    try:
        ends = [process.communicate(timeout=SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * processes, ends
    return [re.search(r"^fingerprint (\w+)", output, re.MULTILINE)[1] for output, _ in ends]


def test_two_processes_of_two_devices_save_and_restore(tmp_path, root):
    saved = run(tmp_path, processes=2, devices=2, mesh=(2, 2), root=root)
    assert saved[0] == saved[1]
    assert run(tmp_path, processes=2, devices=2, mesh=(4, 1), root=root) == saved
    assert run(tmp_path, processes=1, devices=1, mesh=(1, 1), root=root) == saved[:1]
