"""Read ArrayRecord shards; reads that fail because of the file system are tried again."""

import functools
import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from array_record.python import array_record_data_source

from emu_jax.data.images import DecodeError
from emu_jax.errors import UserError

log = logging.getLogger(__name__)

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before each further attempt, about a minute in total

# ArrayRecord raises RuntimeError for all faults. Those of the file system name the failed system call and the file:
# "open() failed: No such file or directory; opening /data/x.array_record-00000-of-00001".
_SYSTEM_CALL = re.compile(r"\w+\(\) failed: (?P<reason>[^;]*); \w+ (?P<file>[^;]*)")

T = TypeVar("T")


def open_records(shards: Sequence[Path]) -> tuple[array_record_data_source.ArrayRecordDataSource, int]:
    """Open shards, and return the source of their records and the number of records.

    Raises:
      UserError: a shard is damaged or truncated, or cannot be read after several attempts.
    """

    def attempt() -> tuple[array_record_data_source.ArrayRecordDataSource, int]:
        # One record at a time: dispatching to a thread pool costs more than reading the record.
        options = {"max_parallelism": "0"}
        source = array_record_data_source.ArrayRecordDataSource(list(map(str, shards)), reader_options=options)
        return source, len(source)

    try:
        return retry_reads(attempt)
    except DecodeError as error:
        raise UserError(
            f"A shard of {shards[0].parent} is damaged or truncated ({error}); copy it again or prepare the set again."
        ) from None


class Records:
    """The records of shards by index, as bytes. Pickling is cheap: each process opens the files itself."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self._shards = tuple(shards)

    def __len__(self) -> int:
        return self._opened[1]

    def __getitem__(self, index: int) -> bytes:
        return retry_reads(lambda: self._opened[0][index], before_retry=self._close)

    @functools.cached_property
    def _opened(self) -> tuple[array_record_data_source.ArrayRecordDataSource, int]:
        return open_records(self._shards)

    def _close(self) -> None:
        self.__dict__.pop("_opened", None)

    def __getstate__(self) -> dict[str, Any]:
        return {"_shards": self._shards}


def retry_reads(read: Callable[[], T], *, before_retry: Callable[[], None] = lambda: None) -> T:
    """Return `read()`. If the file system fails, as network disks do for a moment, wait and try again.

    Args:
      read: reads records of shards.
      before_retry: called before each further attempt, such as to close the files.

    Raises:
      UserError: the file system still fails after the last attempt. The message names the shard.
      DecodeError: the data that was read is damaged.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except UserError:
            raise
        except Exception as error:
            failed = _failed_call(error)
            if failed is None:
                raise damaged_record(error) from None
            file, reason = failed
            if pause is None:
                raise UserError(
                    f"Cannot read {file}: {reason}, after {len(PAUSES)} further attempts in {sum(PAUSES):g} s. Check "
                    "the disk or its mount, then run the same command to resume."
                ) from None
            log.warning("cannot read %s (%s); trying again in %g s", file, reason, pause)
            time.sleep(pause)
            before_retry()
    raise AssertionError  # the last attempt returns or raises


def damaged_record(error: Exception) -> DecodeError:
    """Return the error for a record that cannot be decoded."""
    return DecodeError(f"the record is damaged ({type(error).__name__}: {error})")


def _failed_call(error: Exception) -> tuple[str, str] | None:
    """Return the file and the reason if the file system has failed; None if the data is damaged."""
    if isinstance(error, OSError):
        return str(error.filename or "a shard"), error.strerror or str(error)
    found = _SYSTEM_CALL.search(str(error))
    return None if found is None else (found["file"], found["reason"])
