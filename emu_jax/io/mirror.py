"""A run whose workdir is in a bucket: what grows line by line is written here and copied there.

Object stores take whole objects: metrics.jsonl, TensorBoard's events, the report and the profile are written to a local
folder, and those that changed are copied once in a while and at the end. Checkpoints go to the bucket directly.
"""

import hashlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from absl import logging
from etils import epath

from emu_jax.errors import UserError
from emu_jax.training.log import METRICS_FILE


def is_remote(workdir: str) -> bool:
    """Whether `workdir` is in an object store, as `gs://BUCKET/run` is."""
    return "://" in workdir


class Mirror:
    """The local side of a remote workdir, kept in step with it; a sink of the run's metrics log."""

    def __init__(self, remote: str, *, every_seconds: float = 60.0, local: Path | None = None) -> None:
        """Makes the local folder (default: one of this remote in the folder for temporary files).

        The metrics of an earlier try, perhaps on another machine, are fetched so that the run goes on with them.

        Raises:
          UserError: the bucket cannot be reached.
        """
        self._remote = epath.Path(remote)
        name = hashlib.sha256(remote.rstrip("/").encode()).hexdigest()[:12]
        self.local = local or Path(tempfile.gettempdir()) / f"emu_jax-{name}" / self._remote.name
        self.local.mkdir(parents=True, exist_ok=True)
        self._every, self._last = every_seconds, time.monotonic()
        self._copied: dict[Path, tuple[int, int]] = {}
        earlier, mine = self._remote / METRICS_FILE, self.local / METRICS_FILE
        try:
            if earlier.exists():
                mine.write_bytes(earlier.read_bytes())
                self._copied[mine] = _version(mine)
        except ImportError as error:
            raise UserError(
                f"{remote} cannot be reached without another package ({error}): pip install gcsfs."
            ) from error
        except OSError as error:
            raise UserError(f"{remote} cannot be read ({error}); look at the bucket's name and your rights.") from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Copies what changed when it is time."""
        if time.monotonic() - self._last >= self._every:
            self.push()

    def warn(self, step: int, warning: str) -> None:
        """Copies at once: somebody may be watching."""
        self.push()

    def close(self) -> None:
        """Copies the rest."""
        self.push()

    def push(self) -> None:
        """Copies every file that changed; where the bucket does not answer, says so and tries again the next time."""
        self._last = time.monotonic()
        for path in self._files():
            version = _version(path)
            if self._copied.get(path) == version:
                continue
            target = self._remote / path.relative_to(self.local).as_posix()
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
            except Exception as error:
                logging.warning("%s could not be copied to %s (%s); it is tried again", path, target, error)
                return
            self._copied[path] = version

    def _files(self) -> list[Path]:
        return sorted(path for path in self.local.rglob("*") if path.is_file() and path.suffix != ".tmp")


def _version(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
