"""Documents that a reader could not use: listed with source, key and reason; too many of them stop the run."""

import json
import logging
from pathlib import Path
from typing import TextIO

from emu_jax.errors import UserError
from emu_jax.io.files import file_errors, read_text, write_text

log = logging.getLogger(__name__)

_MIN_DOCUMENTS = 1000  # the fraction of rejects is computed over at least this many documents


class UnusableDocument(Exception):
    """A document that cannot be used for training, with the reason."""

    def __init__(self, source: str, key: str, reason: Exception):
        super().__init__(str(reason))
        self.source, self.key, self.reason = source, key, str(reason)

    def __str__(self) -> str:
        return f"{self.source}: {self.key}: {self.reason}"


class Rejects:
    """The rejects of one reader: counts, saved with its state, and a list, which is truncated when a run resumes.

    Attributes:
      seen: documents read.
      count: rejected documents among them.
    """

    def __init__(self, path: Path | None, *, max_fraction: float):
        """Write lines of JSON to `path`, if given, and tolerate up to `max_fraction` of the documents seen."""
        self.seen = self.count = 0
        self._path, self._max_fraction = path, max_fraction
        self._file: TextIO | None = None

    def add(self, unusable: UnusableDocument) -> None:
        """Count and list a reject.

        Raises:
          UserError: more than the tolerated fraction is rejected, or the list cannot be written.
        """
        log.warning("skipped %s", unusable)
        line = {"source": unusable.source, "key": unusable.key, "reason": unusable.reason}
        if self._path is not None:
            with file_errors("write", self._path):
                file = self._open(self._path)
                file.write(json.dumps(line) + "\n")
                file.flush()
        self.count += 1
        if self.count > self._max_fraction * max(self.seen, _MIN_DOCUMENTS):
            listed = f" All are listed in {self._path}." if self._path is not None else ""
            raise UserError(
                f"{self.count} of {self.seen} documents could not be used, more than the fraction "
                f"{self._max_fraction} that data.max_rejected allows. The last one: {unusable}.{listed}"
            )

    def restore(self, *, seen: int, count: int) -> None:
        """Return to a saved state; later entries of the list are deleted when the next reject is added."""
        self.seen, self.count = seen, count
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, path: Path) -> TextIO:
        if self._file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            before = read_text(path).splitlines(keepends=True) if path.exists() else []
            write_text(path, "".join(before[: self.count]))
            self._file = path.open("a", encoding="utf-8")
        return self._file
