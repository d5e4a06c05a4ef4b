"""Find the images and videos that the files of a data set name, in folders or tars."""

import dataclasses
import functools
import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO

from emu_jax.data.bad_data import NotDownloaded, RecordError
from emu_jax.data.regular_files import open_regular_file, read_regular_file
from emu_jax.data.sources.source import ReadOptions
from emu_jax.data.sources.tar_samples import end_error
from emu_jax.errors import UserError

_OPEN_TARS = 8


class MissingFile(RecordError):
    """A media file that a record names is not there."""


def downloaded_file(path: Path, name: str, options: ReadOptions, *defaults: str) -> bytes:
    """Return the bytes of a media file as `media_file` does, in a set whose files each user downloads.

    Raises:
      NotDownloaded: there is no such file.
      RecordError: as `media_file`.
    """
    try:
        return media_file(path, name, options, *defaults)
    except MissingFile as error:
        raise NotDownloaded(error.reason, error.detail) from None


def media_file(path: Path, name: str, options: ReadOptions, *defaults: str) -> bytes:
    """Return the bytes of the file `name` in `options.media`, or else in one of `defaults` next to `path`.

    Each of these is a folder or a tar (`....tar`). In a tar, `name` is looked up as a complete member name, or else as
    the end of exactly one member name (`1.png` finds `images/1.png`, `coco/1.png` does not find `gqa/1.png`).

    Raises:
      MissingFile: there is no such file.
      RecordError: the name leads out of the folder, which is refused because data sets are untrusted; or it is
        ambiguous; or the file is too large or not a regular file.
    """
    roots = [options.media] if options.media else [path.parent / default for default in defaults]
    for root in roots:
        relative = _relative(name, root)
        names = [relative]
        if options.media and len(relative.parts) > 1 and relative.parts[0] == root.name:
            names.append(relative.relative_to(relative.parts[0]))  # "images/1.png" in the folder images/
        for candidate in names:
            found = _find(root, candidate, options)
            if found is not None:
                return found
    raise MissingFile("a media file is missing", name)


def _relative(name: str, root: Path) -> Path:
    """Return a file name relative to `root`, or raise RecordError if it leads elsewhere."""
    given = Path(name)
    if not name or "\x00" in name or ".." in given.parts:
        raise RecordError("a file name is not accepted", repr(name))
    if not given.is_absolute():
        return given
    for base in (root, root.absolute()):
        if given.is_relative_to(base):
            return given.relative_to(base)
    raise RecordError("a file name is not accepted", f"{name!r} is not in {root}; name its folder with --media")


def _find(root: Path, relative: Path, options: ReadOptions) -> bytes | None:
    if root.suffix == ".tar":
        try:
            state = root.stat()
        except OSError:
            return None
        return _open_tar(root, state.st_mtime_ns, state.st_size).read(relative, max_bytes=options.limits.file_bytes)
    file = root / relative
    try:
        real = file.resolve()
        if file.exists() and not real.is_relative_to(root.resolve()):
            raise RecordError("a link leads out of the media folder", relative.as_posix())
        return read_regular_file(file, max_bytes=options.limits.file_bytes)
    except OSError:
        return None


@dataclasses.dataclass(frozen=True)
class _Tar:
    """An open tar. A member is (offset, size), or None if two members have the same name.

    Attributes:
      members: by complete name.
      by_last: complete names by the last part of the name.
    """

    file: IO[bytes]
    members: dict[str, tuple[int, int] | None]
    by_last: dict[str, list[str]]

    def read(self, name: Path, *, max_bytes: int) -> bytes | None:
        """Return the bytes of a member, or None if there is none."""
        full = name.as_posix()
        if full not in self.members:
            matches = [member for member in self.by_last.get(name.name, []) if member.endswith(f"/{full}")]
            if not matches:
                return None
            if len(matches) > 1:
                raise RecordError("several members of the tar match a file name", full)
            full = matches[0]
        found = self.members[full]
        if found is None:
            raise RecordError("several members of the tar match a file name", full)
        offset, size = found
        if size > max_bytes:
            raise RecordError("a file is too large", f"{full}: {size} bytes, at most {max_bytes}")
        return os.pread(self.file.fileno(), size, offset)


@functools.lru_cache(maxsize=_OPEN_TARS)
def _open_tar(path: Path, modified: int, size: int) -> _Tar:
    del modified  # part of the cache key: a changed file is opened again
    file = open_regular_file(path)
    members: dict[str, tuple[int, int] | None] = {}
    by_last: dict[str, list[str]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # otherwise tarfile holds them all
                if not member.isreg() or member.issparse():
                    continue
                name = PurePosixPath(member.name).as_posix()
                if name in members:
                    members[name] = None
                else:
                    members[name] = (member.offset_data, member.size)
                    by_last.setdefault(name.rpartition("/")[2], []).append(name)
            end = archive.offset
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a tar file, or is truncated ({error}).") from None
    if end < size and (reason := end_error(file, end)):
        raise UserError(f"{path} is damaged at byte {end} ({reason}); copy it again.")
    return _Tar(file, members, by_last)
