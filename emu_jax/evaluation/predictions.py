"""predictions.jsonl: read, checked against the examples; appended to while a model runs, and resumed after a kill."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from emu_jax.errors import UserError
from emu_jax.evaluation.data_root import drop_incomplete_line, read_lines
from emu_jax.evaluation.example import Example, Key
from emu_jax.evaluation.task import Task
from emu_jax.io.files import file_errors, write_text

PREDICTIONS, SKIPPED = "predictions.jsonl", "skipped.jsonl"


def read_predictions(path: Path, task: Task, examples: Sequence[Example]) -> dict[Key, Any]:
    """Return the predictions of a file by key. An id may be a number or its digits as a string.

    Raises:
      UserError: a line without the task's fields, an unknown or duplicate id, a value of another form, or no line.
    """
    known = {_as_text(example.key): example for example in examples}
    found: dict[Key, Any] = {}
    for number, row in read_lines(path):
        given, value = _parse(row, task, f"{path}, line {number}")
        example = known.get(_as_text(given))
        if example is None:
            raise UserError(f"{path}, line {number}: {_shown(task, given)} is not in this split of {task.name}.")
        if example.key in found:
            raise UserError(f"{path}, line {number}: {_shown(task, given)} has two predictions; keep one.")
        try:
            task.check(value, example)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {task.value_field} {error}.") from None
        found[example.key] = value
    if not found:
        raise UserError(f"{path} holds no prediction.")
    return found


class PredictionFile:
    """The predictions of a run in OUT/TASK, one part per process while it runs.

    A process appends to its own part, `predictions-00001-of-00002.jsonl`; a single process appends to predictions.jsonl
    itself. `finish` writes predictions.jsonl with all lines in the order of the examples and removes the parts.
    Examples whose media cannot be read are listed likewise in skipped.jsonl, with the reason.
    """

    def __init__(self, folder: Path, task: Task, *, process: int = 0, processes: int = 1, saves: bool = True) -> None:
        """Take OUT/TASK. `saves=False` is for a process whose predictions another process saves."""
        self.folder, self.task = folder, task
        self._saves = saves
        self._part = "" if processes == 1 else f"-{process:05d}-of-{processes:05d}"
        self._files: dict[str, IO[str]] = {}
        with file_errors("write", folder):
            folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> tuple[dict[Key, Any], dict[Key, str]]:
        """Return predictions and skip reasons of all processes so far; an incomplete last line is dropped."""
        predictions: dict[Key, Any] = {}
        skipped: dict[Key, str] = {}
        for path in self._paths(PREDICTIONS):
            drop_incomplete_line(path)
            predictions |= dict(_parse(row, self.task, f"{path}, line {n}") for n, row in read_lines(path))
        for path in self._paths(SKIPPED):
            drop_incomplete_line(path)
            for number, row in read_lines(path):
                key, reason = _parse(row, self.task, f"{path}, line {number}", value_field="reason")
                skipped[key] = reason
        return predictions, {key: reason for key, reason in skipped.items() if key not in predictions}

    def append(self, keys: Iterable[Key], values: Iterable[Any]) -> None:
        """Add predictions; they survive a kill of the process."""
        self._append(PREDICTIONS, self.task.value_field, zip(keys, values, strict=True))

    def skip(self, key: Key, reason: str) -> None:
        """List an example that cannot be predicted."""
        self._append(SKIPPED, "reason", [(key, reason)])

    def finish(self, examples: Sequence[Example]) -> tuple[dict[Key, Any], dict[Key, str]]:
        """Write the complete files in the order of the examples. One process calls this when all are done."""
        self.close()
        predictions, skipped = self.read()
        for name, field, found in (
            (PREDICTIONS, self.task.value_field, predictions),
            (SKIPPED, "reason", skipped),
        ):
            parts = [path for path in self._paths(name) if path.name != PREDICTIONS]
            lines = [self._line(e.key, field, found[e.key]) for e in examples if e.key in found]
            if lines or name == PREDICTIONS:
                write_text(self.folder / name, "".join(lines))
            for part in parts:
                if part.name != name or not lines:
                    part.unlink(missing_ok=True)
        return predictions, skipped

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _append(self, name: str, field: str, rows: Iterable[tuple[Key, Any]]) -> None:
        if not self._saves:
            return
        stem, suffix = name.split(".")
        path = self.folder / f"{stem}{self._part}.{suffix}"
        with file_errors("write", path):
            if name not in self._files:
                self._files[name] = path.open("a", encoding="utf-8")
            self._files[name].write("".join(self._line(key, field, value) for key, value in rows))
            self._files[name].flush()

    def _line(self, key: Key, field: str, value: Any) -> str:
        row = dict(zip(self.task.key_fields, key, strict=True)) | {field: value}
        return json.dumps(row, ensure_ascii=False) + "\n"

    def _paths(self, name: str) -> list[Path]:
        stem, suffix = name.split(".")
        return sorted([*self.folder.glob(name), *self.folder.glob(f"{stem}-*-of-*.{suffix}")])


def _parse(row: Mapping[str, Any], task: Task, where: str, *, value_field: str | None = None) -> tuple[Key, Any]:
    field = value_field or task.value_field
    for name in (*task.key_fields, field):
        if name not in row:
            expected = ", ".join((*task.key_fields, field))
            raise UserError(f"{where} has no {name}; a line of {task.name} has {expected}.")
    return tuple(row[name] for name in task.key_fields), row[field]


def _as_text(key: Key) -> tuple[str, ...]:
    return tuple(map(str, key))


def _shown(task: Task, key: Key) -> str:
    return " ".join(f"{name} {value}" for name, value in zip(task.key_fields, key, strict=True))
