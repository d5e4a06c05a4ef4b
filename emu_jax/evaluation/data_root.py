"""Find a task's files under the folder that `--data` names."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from emu_jax.errors import UserError
from emu_jax.io.files import read_json, read_text

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class DataRoot:
    """ROOT, which holds a folder per task (ROOT/TASK) and image folders that tasks share (ROOT/coco)."""

    root: Path
    task: str

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise UserError(f"There is no folder {self.root}; --data names the folder that holds {self.task}/.")

    def file(self, name: str) -> Path:
        """Return ROOT/TASK/NAME.

        Raises:
          UserError: there is no such file.
        """
        path = self.root / self.task / name
        if not path.is_file():
            raise UserError(f"There is no file {path}; `evaluate --list` shows the files that {self.task} expects.")
        return path

    def has(self, name: str) -> bool:
        """Return True if ROOT/TASK/NAME is a file."""
        return (self.root / self.task / name).is_file()

    def json(self, name: str) -> Any:
        """Return the value of ROOT/TASK/NAME."""
        return read_json(self.file(name))

    def lines(self, name: str) -> list[str]:
        """Return the non-empty lines of ROOT/TASK/NAME."""
        return [line for line in read_text(self.file(name)).splitlines() if line.strip()]

    def folder(self, *names: str) -> Path:
        """Return the first folder of ROOT/TASK/NAME, ROOT/NAME for each NAME that exists; else ROOT/TASK/NAME."""
        candidates = [base / name for name in names for base in (self.root / self.task, self.root)]
        return next((path for path in candidates if path.is_dir()), candidates[0])

    def parse(self, name: str, parse: Callable[[Any], T]) -> T:
        """Return `parse` of the value of ROOT/TASK/NAME.

        Raises:
          UserError: the file does not have the published layout.
        """
        value = self.json(name)
        try:
            return parse(value)
        except UserError:
            raise
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise UserError(
                f"{self.file(name)} does not have the published layout of {self.task} "
                f"({type(error).__name__}: {error})."
            ) from None


def read_lines(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the objects of a JSON Lines file with their line numbers.

    Raises:
      UserError: a line is not a JSON object.
    """
    rows: list[tuple[int, Mapping[str, Any]]] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}).") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} is not a JSON object.")
        rows.append((number, row))
    return rows


def drop_incomplete_line(path: Path) -> None:
    """Truncate a file after its last line end: a killed process may leave the beginning of a line."""
    with path.open("rb+") as file:
        data = file.read()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            file.truncate(end)
            os.fsync(file.fileno())
