"""Lock a folder, so that two processes never write to it at the same time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from emu_jax.errors import UserError
from emu_jax.io.files import file_errors

LOCK_FILE = ".lock"
_NOT_SUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike[str], *, file: Path | None = None) -> Iterator[None]:
    """Hold the lock of `folder` in the block. Create the folder of the lock file if it does not exist.

    The operating system releases the lock when the process ends, also after `kill -9`. The lock file stays, unless the
    block removes its folder. Some network file systems have no locks; there the block runs without one.

    Args:
      folder: the folder to protect, named in the error.
      file: the lock file. Default: FOLDER/.lock.

    Raises:
      UserError: another process holds the lock, or the lock file cannot be written.
    """
    path = Path(folder) / LOCK_FILE if file is None else file
    with _locked_file(path, folder) as handle:
        with file_errors("lock", path):
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            handle.flush()
        yield


@contextlib.contextmanager
def _locked_file(path: Path, folder: str | os.PathLike[str]) -> Iterator[TextIO]:
    while True:
        with file_errors("lock", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115  closed by the next statement
        with handle:
            _lock(handle, path, folder)
            if _is_at(handle, path):
                yield handle
                return
            # The last holder removed the folder after this process opened the file: lock the new file.


def _lock(handle: TextIO, path: Path, folder: str | os.PathLike[str]) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        owner = handle.read(200).strip() or "another process"
        raise UserError(
            f"{folder} is in use by {owner}. Wait until that process ends, or name another folder."
        ) from None
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise UserError(f"Cannot lock {path}: {error.strerror or error}.") from error


def _is_at(handle: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
