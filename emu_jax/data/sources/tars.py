"""Samples of a webdataset tar, and what a damaged one does to them."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from emu_jax.data.sources.base import open_file
from emu_jax.errors import UserError

Sample = tuple[str, dict[str, bytes] | ValueError]

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
        key, parts, twice = None, {}, False
        while True:
            damage = None
            try:
                member = archive.next()
                if member is None:
                    damage = _damage(file, archive.offset)
                data = archive.extractfile(member).read() if member is not None and member.isfile() else None
                if member is not None and data is not None and len(data) != member.size:
                    damage = "the tar is cut"
            except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError, AttributeError) as error:
                member, data, damage = None, None, f"the tar is damaged or cut ({error})"
            if damage is not None:
                yield key or "(start)", ValueError(f"{damage}; what follows is lost")
                return
            name = member.name if member is not None else ""
            folder, slash, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            this = folder + slash + stem if member is not None else None
            if member is not None and data is None:
                continue  # a folder or link
            if this != key:
                if key is not None:
                    yield key, ValueError("a file of the sample comes twice") if twice else parts
                key, parts, twice = this, {}, False
            if member is None:
                return
            twice = twice or extension.lower() in parts
            parts[extension.lower()] = data


def _damage(file, offset: int) -> str | None:
    """tarfile takes a broken header for the end of the archive; the true end is a block of zeros."""
    file.seek(offset)
    block = file.read(_BLOCK)
    if block == bytes(_BLOCK):
        return None
    return "the tar has a damaged header" if len(block) == _BLOCK else "the tar ends without its end mark: it is cut"
