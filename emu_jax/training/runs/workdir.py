"""Protect the workdir of a run from a second process that trains in it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from emu_jax.io.lock import folder_lock


@contextlib.contextmanager
def workdir_lock(workdir: Path, *, remote: bool) -> Iterator[None]:
    """Hold the lock of `workdir` in the block, by process 0 of the run.

    Args:
      workdir: the local folder of the run.
      remote: the run is in an object store. Those have no locks that a killed process releases, so there is no check:
        two runs that write to one bucket folder overwrite each other's metrics.

    Raises:
      UserError: another run is in progress in this workdir.
    """
    if remote or jax.process_index() != 0:
        yield
        return
    with folder_lock(workdir):
        yield
