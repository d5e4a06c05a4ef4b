"""Commands in their own process with a closed or full output, a closed input, and wrong environment variables."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from emu_jax import cli
from tests.attacks.trial import Outcome, Trial

ROOT = Path(__file__).resolve().parents[2]
TRAIN = "train --config=configs/tiny.py --workdir=/nonexistent/run"
WRONG_VARIABLES = (
    {"JAX_NUM_PROCESSES": "two", "JAX_COORDINATOR_ADDRESS": "localhost:1"},
    {"JAX_NUM_PROCESSES": "2"},
    {"JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "localhost:1"},
    {"JAX_PROCESS_ID": "9", "JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "localhost:1"},
    {"JAX_PLATFORMS": "foo"},
    {"JAX_PLATFORMS": "", "SLURM_STEP_NUM_TASKS": "many"},
    {"JAX_PLATFORMS": "", "SLURM_STEP_NUM_TASKS": "2"},
)


class Terminal:
    """Commands that only print or are refused: no traceback on any output or input."""

    name = "terminal and environment"

    def attempt(self, rng: random.Random) -> Trial:
        command = rng.choice(sorted(cli.commands()))
        script, environment = rng.choice(
            (
                (f"{sys.executable} -m emu_jax {command} --help | head -1", {}),
                (f"{sys.executable} -m emu_jax {command} --help > /dev/full", {}),
                (f"{sys.executable} -m emu_jax {command} --help >&-", {}),
                (f"{sys.executable} -m emu_jax {command} --nonsense 2>&-", {}),
                (f"{sys.executable} -m emu_jax chat --checkpoint /nonexistent <&-", {}),
                (f"{sys.executable} -m emu_jax {command} --help", {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}),
                (f"{sys.executable} -m emu_jax generate --checkpoint /nonexistent $'\\xff\\xfe'", {"LC_ALL": "C"}),
                (f"{sys.executable} -m emu_jax generate --checkpoint /nonexistent {'a' * 300}", {}),
                (f"{sys.executable} -m emu_jax {TRAIN}", rng.choice(WRONG_VARIABLES)),
                (f"cd $(mktemp -d) && rmdir $PWD && {sys.executable} -m emu_jax {command}", {}),
            )
        )
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_PROC"))}
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT,
            env=variables | {"PYTHONPATH": str(ROOT)} | environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=110,
        )
        settings = " ".join(f"{name}={value}" for name, value in environment.items())
        description = f"{settings} {script.replace(sys.executable, 'python')}"
        if "Traceback" in done.stderr or "Exception ignored" in done.stderr:
            return Trial(Outcome.TRACEBACK, f"{description}: {done.stderr[-300:]}")
        refused = environment or (">&-" not in script and "--help" not in script)
        if refused and "--help" not in script and done.returncode == 0:
            return Trial(Outcome.WRONG, description)
        return Trial(Outcome.REFUSED if done.returncode else Outcome.RIGHT, description)
