"""Read files of an object store by libraries that read only local files: copy them once, into a cache folder.

Parameters of a checkpoint are streamed instead, by Orbax. The cache is `emu_jax/remote` in the user's cache folder, or
the folder that the environment variable EMU_JAX_REMOTE_CACHE names; it may be removed at any time between two runs.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
from pathlib import Path
from typing import Any

import fsspec
import platformdirs

from emu_jax.errors import UserError
from emu_jax.io.files import atomic_file
from emu_jax.io.paths import is_url, store_errors

CACHE = "EMU_JAX_REMOTE_CACHE"

# Values in a listing that change with the content of an object, by store.
_VERSIONS = ("etag", "ETag", "generation", "md5Hash", "mtime", "LastModified", "created")


def local_copy(path: str | os.PathLike[str]) -> Path:
    """Return a local path unchanged, and for a URL the path of a local copy of the file or folder.

    Files that were copied before are not read again, unless they changed in the store. Processes of one machine may
    copy the same URL at the same time.

    Raises:
      UserError: there is nothing at the URL, it cannot be read, or the cache cannot be written.
    """
    text = os.fspath(path)
    if not is_url(text):
        return Path(text)
    with store_errors(text):
        store, root = fsspec.core.url_to_fs(text)
        root = root.rstrip("/")
        store.invalidate_cache()
        # A single file is listed under its own name.
        found = {name: details for name, details in store.find(root, detail=True).items() if details["type"] == "file"}
    if not found:
        raise UserError(f"There is nothing at {text}. Check the name and your permissions.")
    target = _cache() / _key(text, found) / posixpath.basename(root)
    for name, details in found.items():
        file = target / posixpath.relpath(name, root) if name != root else target
        if file.is_file() and file.stat().st_size == details["size"]:
            continue
        with atomic_file(file) as temporary, store_errors(text), store.open(name, "rb") as source:
            with open(temporary, "wb") as copy:
                shutil.copyfileobj(source, copy, 2**22)
            if temporary.stat().st_size != details["size"]:
                raise UserError(f"{name} has another size than the store lists. Try again when nothing writes to it.")
    return target


def _cache() -> Path:
    folder = os.environ.get(CACHE)
    return Path(folder) if folder else Path(platformdirs.user_cache_dir("emu_jax")) / "remote"


def _key(url: str, found: dict[str, dict[str, Any]]) -> str:
    """Return a name for this version of the files at a URL."""
    digest = hashlib.sha256(url.rstrip("/").encode())
    for name, details in sorted(found.items()):
        version = [str(details[key]) for key in _VERSIONS if details.get(key) is not None]
        digest.update("\0".join([name, str(details["size"]), *version, ""]).encode())
    return digest.hexdigest()[:20]
