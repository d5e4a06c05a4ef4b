"""Read regular files that an untrusted data set names: no FIFO, no device, and no more bytes than allowed."""

import os
import stat
from pathlib import Path
from typing import IO

from emu_jax.data.bad_data import RecordError
from emu_jax.errors import UserError


def read_regular_file(path: Path, *, max_bytes: int) -> bytes:
    """Return the bytes of a file.

    Raises:
      OSError: there is no such file, or it cannot be read.
      RecordError: not a regular file, or larger than `max_bytes`.
    """
    # O_NONBLOCK: opening a FIFO returns at once.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise RecordError("not a regular file", path.name)
        if status.st_size > max_bytes:
            raise RecordError("a file is too large", f"{path.name}: {status.st_size} bytes, at most {max_bytes}")
        return file.read(status.st_size)


def open_regular_file(path: Path) -> IO[bytes]:
    """Open an input file. Raises UserError if it cannot be read or is not a regular file."""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path} is not a regular file.")
    return file
