"""Ctrl-C in the middle of the demo: it ends cleanly, and finished phases are not repeated at the next start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def test_ctrl_c_ends_the_demo_cleanly(tmp_path: Path, root: Path, user_environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "emu_jax", "demo", "--fast", "--workdir", str(tmp_path / "demo")],
        cwd=root,
        env=user_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # If the tests run in the background, their children ignore Ctrl-C by default.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[3/"):
            os.killpg(process.pid, signal.SIGINT)  # to the command and its children, as a terminal does
            break
    else:
        raise AssertionError(f"the demo ended before its third phase: {process.communicate()[1]}")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.strip().endswith("interrupted")
    finished = json.loads((tmp_path / "demo" / "demo.json").read_text())["phases"]
    assert list(finished) == ["Write the synthetic world", "Prepare the data"]
