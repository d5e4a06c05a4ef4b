"""Connected processes on this machine, in place of the hosts of a pod."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path


def start_hosts(
    command: Sequence[str], *, count: int, devices: int, root: Path, cwd: Path | None = None
) -> list[subprocess.Popen[str]]:
    """Start `count` processes of `command` with `devices` CPU devices each; one process is connected to no other.

    Args:
      root: root of the repository, where packages are imported from.
      cwd: working directory. Default: `root`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(root),
    }
    if count > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    pipes = {"cwd": cwd or root, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(i)}, **pipes) for i in range(count)]
