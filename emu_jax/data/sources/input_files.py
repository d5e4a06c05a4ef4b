"""Expand the patterns of `--input` to files: literal names, folders, braces and wildcards."""

import glob
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from emu_jax.errors import UserError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_NAMES = 1_000_000  # names of one pattern with braces
_MAX_GAPS = 10  # numbers per file


def expand_inputs(patterns: Sequence[str], *, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files that match `patterns`, sorted, each once.

    A pattern is, in this order: the name of a file; the name of a folder, for its files that end with `suffixes`; names
    with braces as in webdataset (`{00000..00099}.tar`, `{a,b}.json`), of which each must exist; or a glob.

    Raises:
      UserError: a pattern, or a name of a pattern with braces, matches no file.
    """
    return sorted({path for pattern in patterns for path in _expand(pattern, suffixes)})


def missing_shards(paths: Sequence[Path]) -> list[str]:
    """Return the names that are missing in runs of numbered files: 00001.tar of 00000.tar and 00002.tar."""
    runs: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)  # (before, after the number) -> {number: its width}
    for path in paths:
        for match in re.finditer(r"\d+", path.name):
            before, after = f"{path.parent}/{path.name[: match.start()]}", path.name[match.end() :]
            runs[before, after][int(match[0])] = len(match[0])
    missing = []
    for (before, after), widths in runs.items():
        first, last, width = min(widths), max(widths), min(widths.values())
        if last - first > _MAX_GAPS * len(widths):  # these numbers do not count shards
            continue
        missing += [f"{before}{number:0{width}d}{after}" for number in range(first, last) if number not in widths]
    return missing


def _expand(pattern: str, suffixes: tuple[str, ...]) -> list[Path]:
    if "://" in pattern:
        raise UserError(f"{pattern} is a URL; mount the bucket or copy the files, and name the local path.")
    found = _literal(pattern, suffixes)
    if found:
        return found
    names = _braces(pattern)
    if len(names) == 1:
        found = _glob(pattern, suffixes)
        if not found:
            raise UserError(f"No file matches {pattern}.")
        return found
    missing = []
    for name in names:
        of_name = _literal(name, suffixes) or _glob(name, suffixes)
        missing += [] if of_name else [name]
        found += of_name
    if missing:
        listed = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise UserError(f"{len(missing)} of {len(names)} files of {pattern} do not exist: {listed}.")
    return found


def _literal(name: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the file `name`, or the files of the folder `name`."""
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return [path]
        if not path.is_dir():
            return []
        found = [file for file in path.iterdir() if _is_input(file, suffixes)]
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} cannot be read ({error}).") from None
    if not found:
        raise UserError(f"The folder {name} has no files that end with {' or '.join(suffixes)}.")
    return found


def _glob(pattern: str, suffixes: tuple[str, ...]) -> list[Path]:
    paths = [Path(name) for name in glob.glob(str(Path(pattern).expanduser()), recursive=True)]
    files = [path for path in paths if path.is_file()]
    if not files:  # only folders match: their files
        files = [file for path in paths if path.is_dir() for file in path.iterdir() if _is_input(file, suffixes)]
    return files


def _is_input(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(suffixes)


def _braces(pattern: str) -> list[str]:
    """Return the names of a pattern with braces, without regard to whether they exist.

    _braces("{08..10}.tar") -> ["08.tar", "09.tar", "10.tar"]
    """
    names = [pattern]
    while any(_BRACES.search(name) for name in names):
        expanded = []
        for name in names:
            match = _BRACES.search(name)
            options = _options(match[1]) if match else [""]
            if match is None:
                expanded.append(name)
            elif len(expanded) + len(options) > _MAX_NAMES:
                raise UserError(f"{pattern} expands to more than {_MAX_NAMES} files.")
            else:
                expanded += [name[: match.start()] + option + name[match.end() :] for option in options]
        names = expanded
    return names


def _options(content: str) -> list[str]:
    """Return the alternatives in a pair of braces."""
    match = _RANGE.fullmatch(content)
    if match is None:
        return content.split(",")
    first, last = int(match[1]), int(match[2])
    if abs(last - first) >= _MAX_NAMES:
        raise UserError(f"{{{content}}} expands to more than {_MAX_NAMES} files.")
    width = max(len(match[1]), len(match[2])) if "0" in (match[1][0], match[2][0]) else 0
    step = 1 if first <= last else -1
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]
