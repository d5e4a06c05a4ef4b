"""Shared test setup: eight CPU devices, fast compilation on CPUs, and the reference cases where they are present."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from emu_jax.cli import compilation_cache

ROOT = Path(__file__).resolve().parents[1]
DEVICES = 8

Command = Callable[..., subprocess.CompletedProcess[str]]

# Tests compile many programs several times. `make test` starts with the programs of the last run.
COMPILATION_CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / "build" / "test-cache" / compilation_cache.machine()),
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2 * 2**30),  # bytes
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
}
ORIGINAL_ENVIRONMENT = COMPILATION_CACHE | dict(os.environ)


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment variables that JAX reads at import and when it starts its devices.

    Not in the main process of `pytest -n 2`: its workers inherit the environment and need the original one in
    `ORIGINAL_ENVIRONMENT`.
    """
    if config.getoption("numprocesses", default=None) and not hasattr(config, "workerinput"):
        return
    os.environ["XLA_FLAGS"] = (
        f"{ORIGINAL_ENVIRONMENT.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}".strip()
    )
    for name, value in COMPILATION_CACHE.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Tests spend most of their time compiling; this halves it. `make parity` runs fully optimized programs.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in `tests/parity` and `tests/e2e` with the name of their folder."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in ("parity", "e2e"):
            item.add_marker(folder)


@pytest.fixture(scope="session")
def root() -> Path:
    """Root folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with reference cases and samples next to the repository. It is not part of the repository."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"the reference cases are not on this machine (no folder {path.name}/ next to the repository)")
    return path


@pytest.fixture(scope="session")
def user_environment() -> dict[str, str]:
    """Environment variables of a user's process: one device, optimized programs."""
    return ORIGINAL_ENVIRONMENT


@pytest.fixture(scope="session")
def run_command(root: Path, user_environment: dict[str, str]) -> Command:
    """Run `python -m emu_jax ARGUMENTS...` in its own process.

    `run_command("generate", "--checkpoint", path, timeout=300)` returns the completed process with its output as text.
    """

    def run(*arguments: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "emu_jax", *map(str, arguments)]
        return subprocess.run(line, cwd=root, env=user_environment, capture_output=True, text=True, timeout=timeout)

    return run
