"""Read CSV files row by row by the rules of the csv module, so that a broken row costs only itself."""

import collections
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from emu_jax.data.bad_data import RecordError
from emu_jax.data.limits import Limits
from emu_jax.data.regular_files import open_regular_file
from emu_jax.data.sources.json_files import bounded_lines
from emu_jax.data.sources.source import decode_text
from emu_jax.errors import UserError

_MAX_ROW_LINES = 20  # lines of one row whose quoted field has line breaks

_Lines = Iterator[tuple[int, str | RecordError]]


def csv_rows(
    path: Path, limits: Limits, *, columns: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, str] | RecordError]]:
    """Yield (FILE:LINE, the row by column name, or a RecordError); empty lines are skipped.

    A quote inside an unquoted field is text (`a 12" ruler`). A row that starts with an unclosed quote is broken, and
    reading continues at the next line.

    Raises:
      UserError: the first line does not have the `columns`.
    """
    with open_regular_file(path) as file:
        lines = _text_lines(file, limits)
        names = _header(path, lines, limits)
        if missing := [column for column in columns if column not in names]:
            raise UserError(f"{path} needs the columns {', '.join(columns)}; it lacks {', '.join(missing)}.")
        for number, row in _rows(lines, width=len(names)):
            if isinstance(row, RecordError):
                yield f"{path.name}:{number}", row
            else:
                yield f"{path.name}:{number}", dict(zip(names, row, strict=True))


def _header(path: Path, lines: _Lines, limits: Limits) -> list[str]:
    _, first = next(lines, (1, ""))
    if isinstance(first, RecordError) or len(first) > limits.header_bytes:
        raise UserError(f"{path} does not start with the names of its columns.")
    names = _parse([first], strict=False)
    if names is None:
        raise UserError(f"{path} does not start with the names of its columns.")
    return names


def _text_lines(file: IO[bytes], limits: Limits) -> _Lines:
    """Yield (number, line with its line break)."""
    for number, line in bounded_lines(file, limits):
        if isinstance(line, RecordError):
            yield number, line
            continue
        try:
            yield number, decode_text(line)
        except RecordError as error:
            yield number, error


def _rows(lines: _Lines, *, width: int) -> Iterator[tuple[int, list[str] | RecordError]]:
    """Yield (number of the first line, fields or a RecordError)."""
    ahead: collections.deque[tuple[int, str | RecordError]] = collections.deque()

    def take() -> tuple[int, str | RecordError] | None:
        return ahead.popleft() if ahead else next(lines, None)

    while (item := take()) is not None:
        number, line = item
        if isinstance(line, RecordError):
            yield number, line
            continue
        if not line.strip():
            continue
        row = _parse([line], strict=False)
        if row is None:
            row, rest = _multiline_row(line, take, width=width)
            ahead.extendleft(reversed(rest))
            if row is None:
                yield number, RecordError("a quote is not closed")
                continue
        if len(row) != width:
            yield number, RecordError("the row has another number of fields", f"{len(row)}, expected {width}")
        else:
            yield number, row


def _multiline_row(line: str, take, *, width: int) -> tuple[list[str] | None, list[tuple[int, str | RecordError]]]:
    """Read more lines until the quote of a row is closed.

    Returns the row, and no lines; or None, and the lines to read again, if the quote is not closed or a line would be
    a complete row: the quote was then probably a stray one, and joining the lines would mix two rows.
    """
    texts, read = [line], []
    while len(texts) < _MAX_ROW_LINES and (item := take()) is not None:
        read.append(item)
        text = item[1]
        if isinstance(text, RecordError):
            break
        if width > 1 and text.partition('"')[0].count(",") >= width - 1:
            break
        texts.append(text)
        row = _parse(texts, strict=True)
        if row is not None:
            return (row, []) if len(row) == width else (None, read)
    return None, read


def _parse(lines: list[str], *, strict: bool) -> list[str] | None:
    """Return the fields of one row, or None if its last quote is not closed or (strict) the row is malformed."""
    try:
        rows = list(csv.reader(lines, strict=True))
    except csv.Error:
        # Either an unclosed quote, or text after a closing quote, which the csv module accepts unless strict.
        if strict or _has_open_quote(lines):
            return None
        rows = list(csv.reader(lines))
    return rows[0] if len(rows) == 1 else None


def _has_open_quote(lines: list[str]) -> bool:
    """Return True if the last quoted field of a row does not end: a further line then continues the same row."""
    marker = "a"
    try:
        rows = list(csv.reader([*lines, marker]))
    except csv.Error:  # a control character, or a field above the module's limit
        return True
    return len(rows) == 1 or rows[-1] != [marker]
