"""Samples of a webdataset tar, and what a damaged one does to them."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from emu_jax.data.sources.base import open_file
from emu_jax.errors import UserError

Sample = tuple[str, dict[str, bytes] | ValueError]

MAX_MEMBER = 2**30  # bytes; what a sparse member claims costs nothing to write
_BLOCK = 512


def samples(path: Path) -> Iterator[Sample]:
    """(key, {extension: bytes}) for each run of members with one key: the name up to its first dot.

    `a/0001.jpg`, `a/0001.txt` are sample "a/0001" with "jpg" and "txt"; `x.0.png` is "0.png" of sample "x". A damaged
    or cut tar gives what lies whole before the damage, then a ValueError under the key where it happened; the sample
    that was being read is given up with it, since what it lacks cannot be known. A name that comes twice in one sample
    makes that sample a ValueError too.

    Raises:
      UserError: not a tar at all.
    """
    with open_file(path) as file:
        try:
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (the file is closed; it holds no more)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise UserError(f"{path} is not a tar file ({error}).") from None
        key: str | None = None
        parts: dict[str, bytes] = {}
        twice = False
        try:
            for name, data in _members(archive, file):
                folder, slash, base = name.rpartition("/")
                stem, _, extension = base.partition(".")
                this = folder + slash + stem
                if this != key:
                    if key is not None:
                        yield key, _sample(parts, twice=twice)
                    key, parts, twice = this, {}, False
                twice = twice or extension.lower() in parts
                parts[extension.lower()] = data
        except ValueError as damage:
            yield key or "(start)", damage
        else:
            if key is not None:
                yield key, _sample(parts, twice=twice)


def _sample(parts: dict[str, bytes], *, twice: bool) -> dict[str, bytes] | ValueError:
    return ValueError("a file of the sample comes twice") if twice else parts


def _members(archive: tarfile.TarFile, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file. ValueError where the tar is damaged or cut."""
    while True:
        try:
            member = archive.next()
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            if member is not None and (member.size > MAX_MEMBER or member.issparse()):
                raise ValueError(f"a member of {member.size} bytes; at most {MAX_MEMBER} are read")
            content = archive.extractfile(member) if member is not None and member.isreg() else None
            data = content.read() if content is not None else b""
        except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError) as error:
            raise ValueError(f"the tar is damaged or cut ({error}); what follows is lost") from None
        if member is None:
            if reason := _damage(file, archive.offset):
                raise ValueError(f"{reason}; what follows is lost")
            return
        if content is not None:
            if len(data) != member.size:
                raise ValueError("the tar is cut; what follows is lost")
            yield member.name, data


def _damage(file: IO[bytes], offset: int) -> str | None:
    """tarfile takes a broken header for the end of the archive; the true end is a block of zeros."""
    file.seek(offset)
    block = file.read(_BLOCK)
    if block == bytes(_BLOCK):
        return None
    return "the tar has a damaged header" if len(block) == _BLOCK else "the tar ends without its end mark: it is cut"
