"""The images and videos that the files of a set name: in folders, or in tars."""

import functools
import os
import tarfile
from pathlib import Path
from typing import IO

from emu_jax.data.sources.base import ReadOptions
from emu_jax.errors import UserError

_TARS_OPEN = 8
_Index = dict[str, tuple[int, int] | None]  # (offset, size); None where two members bear the name


def media_file(path: Path, name: str, options: ReadOptions, *places: str) -> bytes:
    """The bytes of the file `name`, from `options.media` or from `places` beside `path`; ValueError where it is not.

    A place is a folder, or a tar (`....tar`) whose members are looked up by their whole name, then by its last part.
    Names with `..` or from the root are refused: they come from strangers.
    """
    relative = Path(name)
    if not name or "\x00" in name or relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"the file name {name!r} is not taken")
    for place in [options.media] if options.media else [path.parent / place for place in places]:
        try:
            found = _from_tar(place, relative) if place.suffix == ".tar" else (place / relative).read_bytes()
        except OSError:
            continue
        if found is not None:
            return found
    raise ValueError(f"the file {name!r} is not there")


def _from_tar(path: Path, name: Path) -> bytes | None:
    file, whole, last = _opened_tar(path, path.stat().st_mtime_ns)
    place = whole[name.as_posix()] if name.as_posix() in whole else last.get(name.name)
    return os.pread(file.fileno(), place[1], place[0]) if place else None


@functools.lru_cache(maxsize=_TARS_OPEN)
def _opened_tar(path: Path, changed: int) -> tuple[IO[bytes], _Index, _Index]:
    """The open file, and where its members lie by their whole names and by the last parts of these."""
    del changed  # tells one state of the file from the next
    file = open(path, "rb")  # noqa: SIM115 (kept open, to be read at any place)
    whole: _Index = {}
    last: _Index = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.isreg() and not member.issparse():
                    place = (member.offset_data, member.size)
                    name = member.name.removeprefix("./")
                    for index, key in ((whole, name), (last, name.rpartition("/")[2])):
                        index[key] = None if key in index else place
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a tar file ({error}).") from None
    return file, whole, last
