"""Read JSON lists and JSON lines record by record, so that a broken record costs only itself."""

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from emu_jax.data.bad_data import RecordError
from emu_jax.data.limits import Limits
from emu_jax.data.regular_files import open_regular_file
from emu_jax.data.sources.source import decode_text, field
from emu_jax.errors import UserError

_SPACE = re.compile(r"[ \t\r\n]*")
_CHUNK = 2**20


def parse_json(data: bytes) -> Any:
    """Parse JSON, or raise RecordError.

    An object with the same name twice is refused: two records whose border is lost have this form.
    """
    try:
        return json.loads(decode_text(data), object_pairs_hook=_unique_names)
    except RecordError:
        raise
    except (ValueError, RecursionError) as error:
        raise RecordError("the JSON cannot be parsed", str(error)) from None


def json_lines(path: Path, limits: Limits) -> Iterator[tuple[str, Any]]:
    """Yield (FILE:LINE, the parsed line or a RecordError); empty lines are skipped."""
    with open_regular_file(path) as file:
        for number, line in bounded_lines(file, limits):
            if isinstance(line, RecordError):
                yield f"{path.name}:{number}", line
            elif line.strip():
                try:
                    yield f"{path.name}:{number}", parse_json(line)
                except RecordError as error:
                    yield f"{path.name}:{number}", error


def bounded_lines(file: IO[bytes], limits: Limits) -> Iterator[tuple[int, bytes | RecordError]]:
    """Yield (number from 1, line); a line above `limits.line_bytes` is skipped and becomes a RecordError."""
    number = 0
    while line := file.readline(limits.line_bytes + 1):
        number += 1
        if len(line) <= limits.line_bytes:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_CHUNK)
        yield number, RecordError("the line is too long", f"more than {limits.line_bytes} bytes")


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """The lines of a file as (FILE:LINE, the parsed line or a RecordError); can be read several times."""

    path: Path
    limits: Limits

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return json_lines(self.path, self.limits)


def json_records(path: Path, limits: Limits, *, names: Sequence[str]) -> Iterable[tuple[str, Any]]:
    """Return the records of a JSON list, or of JSON lines if the file does not start with `[`.

    The result can be read several times.

    Args:
      names: every record has at least one of these names; used to find the next record after a broken one.
    """
    with open_regular_file(path) as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        return list(json_list(path, names=names))
    if start.startswith(b"{"):
        return JsonLines(path, limits)
    raise UserError(f"{path} must hold a JSON list or JSON lines.")


def json_list(path: Path, *, names: Sequence[str], of: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yield (FILE:INDEX, the record or a RecordError) for a JSON list, or for the list under the name `of`.

    Raises:
      UserError: the file does not hold such a list.
    """
    with open_regular_file(path) as file:
        data = file.read()
    try:
        value = parse_json(data)
    except RecordError as error:
        yield from _recover(path, data, error, names=names, of=of)
        return
    if of is not None:
        try:
            value = field(value, of, list)
        except RecordError as error:
            raise UserError(f"{path}: {error}.") from None
    if not isinstance(value, list):
        raise UserError(f"{path} must hold a JSON list, not {type(value).__name__}.")
    for index, record in enumerate(value):
        yield f"{path.name}:{index}", record


def json_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file. Raises UserError if there is none."""
    try:
        with open_regular_file(path) as file:
            value = parse_json(file.read())
    except RecordError as error:
        raise UserError(f"{path}: {error}; nothing was read from it.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}.")
    return value


def _recover(
    path: Path, data: bytes, error: RecordError, *, names: Sequence[str], of: str | None
) -> Iterator[tuple[str, Any]]:
    """Yield the records of a list that is not valid JSON: after a broken record, continue with the next valid one."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    opening = re.search(r"\[" if of is None else re.escape(json.dumps(of)) + r"[ \t\r\n]*:[ \t\r\n]*\[", text)
    if opening is None or (of is None and text[: opening.start()].strip(" \t\r\n")):
        raise UserError(f"{path}: {error}; nothing was read from it.")
    decoder = json.JSONDecoder(object_pairs_hook=_mark_repeated)
    index, position, found = 0, opening.end(), False
    records: list[tuple[str, Any]] = []
    while True:
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
        if text[position : position + 1] == "]":
            break
        try:
            record, end = decoder.raw_decode(text, position)
            end = _SPACE.match(text, end).end()  # type: ignore[union-attr]
            if text[end : end + 1] not in (",", "]"):
                raise ValueError("Expecting ',' delimiter")
        except (ValueError, RecursionError) as broken:
            records.append((f"{path.name}:{index}", RecordError("the JSON cannot be parsed", str(broken))))
            following = _next_record(text, position + 1, names)
            if following is None:
                break
            position = following
        else:
            records.append((f"{path.name}:{index}", _checked(record)))
            found = True
            position = end + (text[end] == ",")
        index += 1
        if found:
            yield from records
            records.clear()
    if not found:
        raise UserError(f"{path}: {error}; nothing was read from it.")
    yield from records


def _next_record(text: str, position: int, names: Sequence[str]) -> int | None:
    """Return the start of the next valid object that has one of `names`."""
    decoder = json.JSONDecoder()
    while (position := text.find("{", position)) >= 0:
        try:
            record, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            position += 1
            continue
        if any(name in record for name in names):
            return position
        position = end
    return None


class _Repeated(dict):
    """An object in which a name occurs twice."""


def _mark_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    is_repeated = len(record) != len(pairs) or any(_has_repeated(value) for value in record.values())
    return _Repeated(record) if is_repeated else record


def _has_repeated(value: Any) -> bool:
    return isinstance(value, _Repeated) or (isinstance(value, list) and any(_has_repeated(item) for item in value))


def _checked(record: Any) -> Any:
    if _has_repeated(record):
        return RecordError("the JSON has an object with the same name twice")
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return RecordError("the text is not UTF-8")
    return record


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise RecordError("the JSON has an object with the same name twice")
    return record
