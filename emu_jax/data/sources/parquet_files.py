"""Read Parquet files row by row; a damaged row group costs its remaining rows, each of them counted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from emu_jax.data.bad_data import RecordError
from emu_jax.data.regular_files import open_regular_file
from emu_jax.errors import UserError

# Names that are not UTF-8 raise ValueError, impossible sizes the others.
_ERRORS = (OSError, pyarrow.ArrowException, ValueError, MemoryError, OverflowError)

_BUFFER = 2**16  # bytes
_BATCH = 16  # rows


def parquet_columns(path: Path) -> list[str]:
    """Return the names of the columns. Raises UserError if the file is not a Parquet file."""
    return _open(path).schema_arrow.names


def parquet_rows(path: Path, *, columns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield (FILE:ROW, the row as a dict or a RecordError). Raises UserError if a column is missing."""
    file = _open(path)
    if missing := [c for c in columns if c not in file.schema_arrow.names]:
        raise UserError(f"{path} lacks the columns {missing}; it has {file.schema_arrow.names}.")
    row = 0
    for group in range(file.num_row_groups):
        end = row + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(
                batch_size=_BATCH, row_groups=[group], columns=list(columns), use_threads=False
            ):
                for record in _rows(batch):
                    if row < end:
                        yield f"{path.name}:{row}", record
                        row += 1
            error = RecordError("a row group has fewer rows than its metadata lists")
        except _ERRORS as damage:
            error = RecordError("the Parquet file is damaged here", _first_line(damage))
        while row < end:
            yield f"{path.name}:{row}", error
            row += 1


def _rows(batch: pyarrow.RecordBatch) -> Iterator[Any]:
    """Yield the rows as dicts; a value that Python cannot represent costs only its row."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield RecordError("the text is not UTF-8", f"byte {error.start}")


def _open(path: Path) -> pyarrow.parquet.ParquetFile:
    with open_regular_file(path):
        pass
    try:
        # Checksums are optional; without them a changed byte can alter a value undetected.
        # With a buffer, a row group of any size is read page by page; without it, completely, and twice.
        return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=_BUFFER)
    except _ERRORS as error:
        raise UserError(f"{path} is not a Parquet file ({_first_line(error)}).") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
