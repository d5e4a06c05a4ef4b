"""Run with a working directory in an object store: files are written locally and copied there.

Object stores replace complete objects. So metrics.jsonl, TensorBoard event files, the report and the profile are
written to a local folder, and changed files are copied at intervals and at the end. Checkpoints are written to the
object store directly.
"""

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import logging
from etils import epath

from emu_jax.errors import UserError


def is_remote(workdir: str) -> bool:
    """Return True for a path in an object store, such as `gs://BUCKET/run`."""
    return "://" in workdir


class Mirror:
    """A local copy of a remote working directory. It is a sink of the run's metrics log."""

    def __init__(
        self, remote: str, *, fetch: Sequence[str] = (), every_seconds: float = 60.0, local: Path | None = None
    ) -> None:
        """Make the local folder, and copy the files of an earlier attempt (perhaps on another machine) into it.

        Args:
          remote: the working directory in the object store.
          fetch: names of the files that a resumed run appends to.
          every_seconds: time between copies.
          local: the local folder. Default: a folder for this remote in the system's temporary directory.

        Raises:
          UserError: the object store cannot be read.
        """
        self._remote = epath.Path(remote)
        name = hashlib.sha256(remote.rstrip("/").encode()).hexdigest()[:12]
        self.local = local or Path(tempfile.gettempdir()) / f"emu_jax-{name}" / self._remote.name
        self.local.mkdir(parents=True, exist_ok=True)
        self._every_seconds, self._last_copy = every_seconds, time.monotonic()
        self._copied: dict[Path, tuple[int, int]] = {}
        try:
            for name in fetch:
                self._fetch(name)
        except ImportError as error:
            raise UserError(f"Reading {remote} requires another package ({error}): pip install gcsfs.") from error
        except OSError as error:
            raise UserError(f"Cannot read {remote}: {error}. Check the bucket name and your permissions.") from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Copy changed files if `every_seconds` have passed."""
        if time.monotonic() - self._last_copy >= self._every_seconds:
            self.push()

    def warn(self, step: int, warning: str) -> None:
        """Copy changed files at once."""
        self.push()

    def close(self) -> None:
        """Copy the remaining changed files."""
        self.push()

    def push(self) -> None:
        """Copy every changed file. If the object store fails, log a warning; the next call tries again."""
        self._last_copy = time.monotonic()
        for path in self._files():
            version = _version(path)
            if self._copied.get(path) == version:
                continue
            target = self._remote / path.relative_to(self.local).as_posix()
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
            except Exception as error:
                logging.warning("%s could not be copied to %s (%s); the next copy tries again", path, target, error)
                return
            self._copied[path] = version

    def _fetch(self, name: str) -> None:
        remote, local = self._remote / name, self.local / name
        if remote.exists():
            local.write_bytes(remote.read_bytes())
            self._copied[local] = _version(local)

    def _files(self) -> list[Path]:
        return sorted(path for path in self.local.rglob("*") if path.is_file() and path.suffix != ".tmp")


def _version(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
