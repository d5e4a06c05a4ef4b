"""Read and write local files: complete or not at all, with one clear line for each failure."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import json
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emu_jax.errors import UserError

_HOST = socket.gethostname()[:60]
_TEMPORARY = re.compile(rf"\..*\.{re.escape(_HOST)}\.(\d{{1,9}})\.(?:\w+\.)?tmp$")  # of this host, by process


@contextlib.contextmanager
def file_errors(action: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError in the block into a UserError such as "Cannot write PATH: No space left on device."."""
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot {action} {path}: {error.strerror or error}.") from error


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and move it to `path` when the block ends without an error.

    Readers see the old file or the complete new one, also after `kill -9` or a power failure. Temporary files that
    killed processes of this host left in the folder are removed.

    Raises:
      UserError: the folder cannot be written to, or the disk is full.
    """
    target = Path(path)
    with file_errors("write", target):
        if target.is_dir():
            raise UserError(f"Cannot write {target}: it is a folder. Name a file.")
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target.parent)
        temporary = target.with_name(f".{target.name[:100]}.{_HOST}.{os.getpid()}.tmp")
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder next to `path`, and rename it to `path` when the block ends without an error.

    Args:
      path: the folder to write.
      replace: replace the folder that is there, after everything is written.

    Raises:
      UserError: `path` cannot be written, the disk is full, or (without `replace`) it is not an empty folder.
    """
    target = Path(path)
    with file_errors("write", target):
        if not replace:
            check_new_folder(target)
        with temporary_folder(target) as temporary:
            new = temporary / "new"
            new.mkdir()
            yield new
            for file in new.rglob("*"):
                if file.is_file():
                    _sync(file)
            if replace and target.exists():
                os.replace(target, temporary / "old")
            os.replace(new, target)


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder on the file system of `target`, and remove it when the block ends.

    Temporary folders that killed processes of this host left next to it are removed too.
    """
    target = Path(os.path.abspath(target))
    new_parents = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target.parent)
    prefix = f".{target.name[:100]}.{_HOST}.{os.getpid()}."
    temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=target.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:
            with contextlib.suppress(OSError):  # it is in use
                parent.rmdir()


def check_new_folder(path: str | os.PathLike[str]) -> None:
    """Raise UserError unless `path` is absent or an empty folder."""
    target = Path(path)
    with file_errors("read", target):
        if target.is_dir() and not any(target.iterdir()):
            return
        if target.exists() or target.is_symlink():
            raise UserError(f"{target} exists already. Name another folder, or remove this one first.")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a binary file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 1) -> None:
    """Write `value` as a JSON file atomically."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a UTF-8 file.

    Raises:
      UserError: there is no such file, it cannot be read, or it is not UTF-8.
    """
    try:
        with file_errors("read", path):
            return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a UTF-8 text file (byte {error.start}).") from error


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the contents of a file. Raises UserError if there is no such file, or it cannot be read."""
    with file_errors("read", path):
        return Path(path).read_bytes()


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the value of a JSON file.

    Raises:
      UserError: there is no such file, it cannot be read, or it is not valid JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise UserError(f"{path} is not valid JSON: it is nested too deeply.") from error


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return True if `path` is a file.

    Raises:
      UserError: the system refuses the question, as for a name that is too long or a folder without permission.
    """
    with file_errors("read", path):
        try:
            return stat.S_ISREG(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except ValueError:  # a NUL character
            return False


def list_files(folder: str | os.PathLike[str], pattern: str = "*") -> list[Path]:
    """Return the entries of a folder that match a glob pattern, sorted by name; none if there is no such folder.

    Raises:
      UserError: the folder cannot be read.
    """
    with file_errors("read", folder):
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
    return [Path(folder) / name for name in sorted(names) if fnmatch.fnmatchcase(name, pattern)]


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@functools.cache  # once per process
def _remove_stale(folder: Path) -> None:
    """Remove the temporary files and folders of this host's processes that have ended."""
    for path in folder.iterdir():
        match = _TEMPORARY.match(path.name)
        if match and not _is_running(int(match[1])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True
