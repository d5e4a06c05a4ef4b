"""What every test stands on: eight CPU devices, a quick CPU JAX, and the reference material where it is there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEVICES = 8

Command = Callable[..., subprocess.CompletedProcess[str]]

AS_STARTED = dict(os.environ)


def pytest_configure(config: pytest.Config) -> None:
    """Sets what JAX reads when it is imported or first looks for devices; no test module has imported it yet.

    Not in the process that only hands tests out (`-n 2`): its workers begin as it was started, and `AS_STARTED` is so.
    """
    if config.getoption("numprocesses", default=None) and not hasattr(config, "workerinput"):
        return
    os.environ["XLA_FLAGS"] = (
        f"{AS_STARTED.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}".strip()
    )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Tests compile much and run little: this halves the time of compiling. `make parity` runs fully optimised programs.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in `tests/parity` and `tests/e2e` carry the marker of their folder."""
    for item in items:
        room = item.path.relative_to(ROOT / "tests").parts[0]
        if room in ("parity", "e2e"):
            item.add_marker(room)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference cases, samples and notes beside the repository; not part of it."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"the reference cases are not on this machine (no folder {path.name}/ beside the repository)")
    return path


@pytest.fixture(scope="session")
def user_environment() -> dict[str, str]:
    """The environment of a process that is no test: one device, optimised programs."""
    return AS_STARTED


@pytest.fixture(scope="session")
def run_command(root: Path, user_environment: dict[str, str]) -> Command:
    """Runs `python -m emu_jax WORDS...` in its own process, as a user would.

    `run_command("generate", "--checkpoint", path, timeout=300)` gives the completed process, its output as text.
    """

    def run(*words: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "emu_jax", *map(str, words)]
        return subprocess.run(line, cwd=root, env=user_environment, capture_output=True, text=True, timeout=timeout)

    return run
