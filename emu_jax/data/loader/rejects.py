"""What a reader could not use: listed with source, key and reason, and the end of the run where it is too much."""

import json
import logging
from pathlib import Path
from typing import TextIO

from emu_jax.data.prepare.parts import write_atomically
from emu_jax.errors import UserError

log = logging.getLogger(__name__)

_ENOUGH_TO_JUDGE = 1000  # documents before a share of broken ones means anything


class Unusable(Exception):
    """A document that cannot be trained on; the reason, and whose it is."""

    def __init__(self, source: str, key: str, reason: Exception):
        super().__init__(str(reason))
        self.source, self.key, self.reason = source, key, str(reason)

    def __str__(self) -> str:
        return f"{self.source}: {self.key}: {self.reason}"


class Rejects:
    """Counts of one reader, kept with its state, and its list, which follows them: resumed, it goes back with them.

    Attributes:
      seen: documents read.
      count: of these, the rejected.
    """

    def __init__(self, path: Path | None, *, share: float):
        """Writes lines of JSON to `path`, where one is given, and bears up to `share` of what was seen."""
        self.seen = self.count = 0
        self._path, self._share = path, share
        self._file: TextIO | None = None

    def add(self, unusable: Unusable) -> None:
        """Counts and lists one more.

        Raises:
          UserError: that is more than the share that is borne, or the list cannot be written.
        """
        log.warning("skipped %s", unusable)
        line = {"source": unusable.source, "key": unusable.key, "reason": unusable.reason}
        if self._path is not None:
            try:
                self._opened().write(json.dumps(line) + "\n")
                self._opened().flush()
            except OSError as error:
                raise UserError(f"The list of rejects {self._path} cannot be written ({error.strerror}).") from None
        self.count += 1
        if self.count > self._share * max(self.seen, _ENOUGH_TO_JUDGE):
            listed = f" All are listed in {self._path}." if self._path is not None else ""
            raise UserError(
                f"{self.count} of {self.seen} documents could not be used, more than the share of "
                f"{self._share} that data.max_rejected allows. The last: {unusable}.{listed}"
            )

    def restore(self, *, seen: int, count: int) -> None:
        """Goes to where a state was saved; what was listed past it is dropped when there is more to list."""
        self.seen, self.count = seen, count
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> TextIO:
        if self._file is None:
            assert self._path is not None
            self._path.parent.mkdir(parents=True, exist_ok=True)
            before = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
            write_atomically(self._path, "".join(before[: self.count]))
            self._file = self._path.open("a", encoding="utf-8")
        return self._file
