"""Read the samples of a webdataset tar, also around damaged parts."""

import contextlib
import dataclasses
import gzip
import tarfile
import tempfile
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO

from emu_jax.data.bad_data import RecordError
from emu_jax.data.limits import Limits
from emu_jax.data.regular_files import open_regular_file
from emu_jax.errors import UserError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

Sample = tuple[str, dict[str, bytes] | RecordError]

_BLOCK = 512
_CHUNK = 2**20
_MAGIC = b"ustar"
_MAGIC_OFFSET = 257
_GZIP = b"\x1f\x8b"
_TRUNCATED = "the tar is truncated; this sample is lost"


@dataclasses.dataclass(frozen=True)
class _Member:
    """A file of the tar; `data` is a RecordError if it cannot be read."""

    name: str
    data: bytes | RecordError


@dataclasses.dataclass(frozen=True)
class _Damage:
    """A damaged part of the tar, between two members."""

    reason: str


def tar_samples(path: Path, limits: Limits) -> Iterator[Sample]:
    """Yield (key, {extension: bytes}) for each run of members with the same key: the name up to its first dot.

    `a/0001.jpg`, `a/0001.txt` are the sample "a/0001" with "jpg" and "txt"; `x.0.png` is "0.png" of sample "x". Members
    that belong to no sample are skipped: names that start with a dot (`._0001.jpg`), `__meta__`, and names without
    extension. A sample with the same extension twice is a RecordError; so are both samples next to a damaged part of
    the tar, because they may be incomplete. Reading continues after the damage.

    Raises:
      UserError: not a tar at all.
    """
    with _open(path) as (file, truncated):
        sample: _Sample | None = None
        damage: _Damage | None = None
        for item in _members(path, file, limits):
            if isinstance(item, _Damage):
                damage = item
                if sample is not None:
                    sample.error = sample.error or _lost(damage)
                continue
            key, extension = _split_name(item.name)
            if not extension:
                continue
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample.key, sample.result()
                sample = _Sample(key)
                if damage is not None:
                    sample.error = _lost(damage)
            damage = None
            sample.add(extension, item.data, limits)
        end_error = _lost(damage) if damage else RecordError(_TRUNCATED, truncated) if truncated else None
        if sample is not None:
            sample.error = sample.error or end_error
            yield sample.key, sample.result()
        elif end_error is not None:
            yield "(start)", end_error


class _Sample:
    """The members of one sample."""

    def __init__(self, key: str):
        self.key = key
        self.error: RecordError | None = None
        self._parts: dict[str, bytes] = {}
        self._bytes = 0

    def add(self, extension: str, data: bytes | RecordError, limits: Limits) -> None:
        if isinstance(data, RecordError):
            self.error = self.error or data
            return
        if extension in self._parts:
            self.error = self.error or RecordError("a file of the sample occurs twice", extension)
        self._bytes += len(data)
        if len(self._parts) > 2 * limits.record_images or self._bytes > limits.file_bytes:
            self.error = self.error or RecordError("the sample is too large")
        if self.error is not None:
            self._parts.clear()
        else:
            self._parts[extension] = data

    def result(self) -> dict[str, bytes] | RecordError:
        return self.error or self._parts


def _lost(damage: _Damage) -> RecordError:
    return RecordError("the tar is damaged here; this sample is lost", damage.reason)


def _split_name(name: str) -> tuple[str, str]:
    """Return key and extension of a member name; an empty extension for a member that belongs to no sample."""
    name = name.removeprefix("./")
    folder, slash, base = name.rpartition("/")
    parts = name.split("/")
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return "", ""
    stem, _, extension = base.partition(".")
    if stem.startswith("__") and stem.endswith("__"):
        return "", ""
    return folder + slash + stem, extension.lower()


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[IO[bytes], str]]:
    """Open a tar, decompressed to a temporary file if it is compressed, and return the error of a truncated one."""
    with open_regular_file(path) as file:
        start = file.read(len(_GZIP))
        file.seek(0)
        if start != _GZIP:
            yield file, ""
            return
        truncated = ""
        with tempfile.TemporaryFile() as plain:
            try:
                with gzip.open(file) as compressed:
                    while chunk := compressed.read1(_CHUNK):  # unlike read, returns the data before an error
                        plain.write(chunk)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                truncated = str(error)
            if not plain.tell():
                raise UserError(f"{path} is not a tar file ({truncated or 'it is empty'}).")
            plain.seek(0)
            yield plain, truncated


def _members(path: Path, file: IO[bytes], limits: Limits) -> Iterator[_Member | _Damage]:
    """Yield the files of a tar in order, and its damaged parts."""
    start: int | None = 0
    while start is not None:
        file.seek(start)
        try:
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (closing it would close nothing)
        except (tarfile.TarError, EOFError, ValueError) as error:
            if start == 0:
                raise UserError(f"{path} is not a tar file ({error}).") from None
            yield _Damage(str(error))
            start = _next_header(file, start + 1)
            continue
        start = yield from _run_of_members(archive, file, limits)


def _run_of_members(
    archive: tarfile.TarFile, file: IO[bytes], limits: Limits
) -> Generator[_Member | _Damage, None, int | None]:
    """Yield members up to the end or up to a damaged part; return the offset of the next header after it."""
    while True:
        header = archive.offset
        try:
            member = archive.next()
            archive.members = []  # type: ignore[attr-defined]  # otherwise tarfile holds them all
        except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError) as error:
            yield _Damage(str(error))
            return _next_header(file, header + 1)
        if member is None:
            if reason := end_error(file, archive.offset):
                yield _Damage(reason)
                return _next_header(file, archive.offset + 1)
            return None
        if not member.isreg() and not member.issparse():
            continue
        if member.issparse() or member.size > limits.file_bytes:
            yield _Member(member.name, RecordError("a file is too large", f"{member.name}: {member.size} bytes"))
            continue
        file.seek(member.offset_data)
        data = file.read(member.size)
        if len(data) != member.size:
            yield _Member(member.name, RecordError(_TRUNCATED))
            return None
        yield _Member(member.name, data)


def end_error(file: IO[bytes], offset: int) -> str:
    """Return the reason why a tar does not end at `offset`: only zeros up to the end of the file are an end."""
    file.seek(offset)
    is_empty = True
    while chunk := file.read(_CHUNK):
        is_empty = False
        if chunk.count(0) != len(chunk):
            return "a header is damaged"
    return "the end mark is missing" if is_empty else ""


def _next_header(file: IO[bytes], offset: int) -> int | None:
    """Return the offset of the next valid header."""
    file.seek(offset)
    base, window = offset, b""
    while True:
        chunk = file.read(_CHUNK)
        window += chunk
        position = 0
        while (found := window.find(_MAGIC, position)) >= 0:
            header = found - _MAGIC_OFFSET
            if header >= 0:
                if header + _BLOCK > len(window) and chunk:
                    break  # needs more data
                if _is_header(window[header : header + _BLOCK]):
                    return base + header
            position = found + 1
        if not chunk:
            return None
        dropped = max(0, len(window) - 2 * _BLOCK)
        base, window = base + dropped, window[dropped:]


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True
