"""The folder of an unfinished preparation: what it is made from, and how it failed."""

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emu_jax.config import to_dict
from emu_jax.data.prepare.cleaning import PrepareConfig
from emu_jax.data.prepare.part_files import discard_part, part_records
from emu_jax.data.regular_files import open_regular_file
from emu_jax.errors import UserError
from emu_jax.io.files import file_errors, read_json, write_json

_SAMPLE = 2**16  # bytes read from both ends of an input file


def preparation_identity(inputs: Sequence[Path], config: PrepareConfig, split: str) -> dict[str, Any]:
    """Return everything that changes the records of a prepared set; resuming with other values would mix two sets.

    Input files count by name, size, and a hash of their first and last bytes, wherever they are.
    """
    digest = hashlib.sha256()
    for path in inputs:
        digest.update(f"{path.name}\0".encode("utf-8", "surrogateescape") + _fingerprint(path))
    options = to_dict(dataclasses.replace(config, options=dataclasses.replace(config.options, media=None)))
    del options["max_rejected"]
    options["options"]["media"] = os.path.realpath(config.options.media) if config.options.media else None
    return {"inputs": digest.hexdigest(), "files": len(inputs), "split": split, **options}


def _fingerprint(path: Path) -> bytes:
    with file_errors("read", path), open_regular_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = hashlib.sha256(f"{size}\0".encode() + file.read(_SAMPLE))
        file.seek(max(0, size - _SAMPLE))
        digest.update(file.read(_SAMPLE))
    return digest.digest()


@dataclasses.dataclass(frozen=True)
class PartialFolder:
    """The folder in which a set is prepared before it is complete."""

    path: Path

    def start(self, settings: dict[str, Any], *, max_rejected: float) -> None:
        """Create the folder, or resume in it.

        If the last run failed because of too many broken documents, their parts are made again, since the input may
        have been repaired; with a higher `max_rejected` they are used as they are.

        Raises:
          UserError: parts of it were made with other settings.
        """
        path = self.path / "settings.json"
        if path.exists() and read_json(path) != settings and self._has_records():
            raise UserError(
                f"{self.path} was started from other input or with other settings; delete it and run the command again."
            )
        with file_errors("write", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
        failure = self.path / "failure.json"
        if failure.exists():
            failed = read_json(failure)
            if max_rejected <= failed["max_rejected"]:
                for name in failed["parts"]:
                    discard_part(self.path / name)
            failure.unlink()

    def fail(self, stems: Sequence[Path], *, max_rejected: float) -> None:
        """Record that the parts `stems` have more broken documents than `max_rejected` allows."""
        write_json(self.path / "failure.json", {"max_rejected": max_rejected, "parts": [stem.name for stem in stems]})

    def remove_if_empty(self) -> None:
        """Delete the folder if no part in it has a record, so that a wrong command does not block the right one."""
        if not self._has_records():
            shutil.rmtree(self.path, ignore_errors=True)

    def _has_records(self) -> bool:
        return any(part_records(path) for path in self.path.glob("part-*.records"))
