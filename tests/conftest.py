"""What every test stands on: eight CPU devices, a quick CPU JAX, and the reference material where it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEVICES = 8

# Read once, when JAX first looks for devices: it must stand here, before any test module imports JAX.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")


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
