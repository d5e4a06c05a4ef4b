"""Paths on the command line and in configs: local with `~` expanded, or in an object store where the code streams."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from emu_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+-]+):/+")  # also "gs:/BUCKET", which is what Path makes of a URL
_STORES = ("gs", "s3")


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return a local path with `~` expanded.

    Raises:
      UserError: it is a URL, or `~` cannot be expanded.
    """
    return Path(local_text(path))


def local_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a local path, or of a pattern of local paths, with `~` expanded.

    Raises:
      UserError: it is a URL, or `~` cannot be expanded.
    """
    text = os.fspath(path)
    match = _SCHEME.match(text)
    if match:
        url = f"{match[1]}://{text[match.end() :]}"
        raise UserError(f"{url} is not a local path. Mount the bucket (such as with gcsfuse), or copy the files here.")
    return _expanded(text)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return True for a URL such as gs://BUCKET/FOLDER, False for a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+-]+://", os.fspath(path)) is not None


def absolute_path(path: str | os.PathLike[str]) -> epath.Path:
    """Return the absolute path of a local path, and a URL unchanged.

    `epath.Path(path).absolute()` makes the local path FOLDER/gs:/BUCKET/... of a URL.
    """
    from etils import epath  # 100 modules, which `--help` does not need

    return epath.Path(path if is_url(path) else os.path.abspath(path))


def path_or_url(path: str | os.PathLike[str]) -> str:
    """Return a local path with `~` expanded, or the URL of a folder in an object store, `gs://...` or `s3://...`.

    Raises:
      UserError: another kind of URL, no bucket in it, or `~` cannot be expanded.
    """
    text = os.fspath(path)
    if not text:
        raise UserError("A path is empty; name a folder or a file.")
    match = _SCHEME.match(text)
    if not match:
        return _expanded(text)
    if match[1] not in _STORES or not re.fullmatch(r"\w+://[^/].*", text):
        raise UserError(f"{text} is neither a local path nor a URL such as gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.")
    return text


@contextlib.contextmanager
def store_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the errors of an object store in the block into UserErrors."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"Reading {path} requires another package ({error}): pip install gcsfs, or s3fs.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error}. Check the name and your permissions.") from error


def _expanded(text: str) -> str:
    expanded = os.path.expanduser(text)
    if expanded.startswith("~") and not os.path.lexists(text):
        raise UserError(f"There is no home folder {text.partition('/')[0]}. Write the complete path.")
    return expanded
