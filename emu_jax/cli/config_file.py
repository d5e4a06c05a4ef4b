"""Read --config=FILE with overrides --config.FIELD=VALUE, as in other ml_collections projects, with clear errors."""

from __future__ import annotations

import difflib
import re
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from emu_jax.errors import UserError
from emu_jax.io.files import is_file, list_files, read_text
from emu_jax.io.paths import local_text, path_or_url

_ROOT = Path(__file__).resolve().parents[2]  # of the repository

# Names of the config fields that are paths. Those in REMOTE_PATHS may be URLs: a warm start is streamed, the others are
# copied to the machine (`io.local_copy`).
LOCAL_PATHS = ("rejects", "decoder", "emu", "data")
REMOTE_PATHS = ("warm_start", "tokenizer", "path", "examples", "sets")


def read_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Return the config of a file.

    Args:
      path: Python file with a `get_config()`; "FILE:ARGUMENT" calls `get_config(ARGUMENT)`.
      overrides: words such as "--config.train.steps=2000".

    Raises:
      UserError: no such file, an error in the file, an unknown field (the nearest one is named), a value of the wrong
        type, or a URL in a field that must be a local path.
    """
    file, _, argument = local_text(path).partition(":")
    file = _find(file)
    config = _call(file, argument)
    try:
        _override(config, overrides)
    except flags.Error as error:
        raise UserError(str(error)) from None
    except (AttributeError, KeyError, IndexError) as error:
        raise UserError(_unknown_field(file, _call(file, argument), overrides, error)) from None
    _check_paths(config)
    return config


def _find(name: str) -> str:
    """Return the path of a config file. `configs/NAME.py` is also found from outside the repository.

    Raises:
      UserError: there is no such file, or it cannot be read; the message names the nearest file.
    """
    candidates = [Path(name)] if Path(name).is_absolute() else [Path(name), _ROOT / name]
    for file in candidates:
        if is_file(file):
            read_text(file)
            return str(file)
    hint = "name a file with a get_config()."
    for file in candidates:
        others = [str(other) for other in list_files(file.parent, "*.py")]
        if close := difflib.get_close_matches(str(file), others, n=1):
            hint = f"did you mean {close[0]}?"
            break
    folders = {Path.cwd(): None, _ROOT: None} if len(candidates) > 1 else {}
    searched = f" in {' or '.join(map(str, folders))}" if len(folders) > 1 else ""
    raise UserError(f"There is no config file {name}{searched}; {hint}")


def _check_paths(config: ConfigDict, prefix: str = "config") -> None:
    """Expand `~` in the fields that are paths; raise UserError for a URL where the path must be local."""
    for name in config:
        value = config.get_oneway_ref(name).get()
        check = path_or_url if name in REMOTE_PATHS else local_text
        try:
            if isinstance(value, ConfigDict):
                _check_paths(value, f"{prefix}.{name}")
            elif isinstance(value, str) and name in (*LOCAL_PATHS, *REMOTE_PATHS) and value:
                config[name] = check(value)
            elif isinstance(value, tuple) and all(isinstance(item, ConfigDict) for item in value):
                for i, item in enumerate(value):
                    _check_paths(item, f"{prefix}.{name}[{i}]")
            elif isinstance(value, tuple) and name == "sets" and all(isinstance(item, str) for item in value):
                config[name] = tuple(check(item) for item in value)
        except UserError as error:
            raise UserError(str(error) if str(error).startswith("config") else f"{prefix}.{name}: {error}") from None


def _call(file: str, argument: str) -> ConfigDict:
    """Return the result of the file's `get_config()`.

    Raises:
      UserError: the file fails, with the line and the message.
    """
    before = list(sys.path)
    sys.path.append(str(_ROOT))  # configs import configs.common
    try:
        get_config = runpy.run_path(file).get("get_config")
        if get_config is None:
            raise UserError(f"{file} has no function get_config(); a config file must define one.")
        config = get_config(argument) if argument else get_config()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename or file}, line {error.lineno}: {error.msg}.") from None
    except (Exception, SystemExit) as error:
        frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename == file]
        line = f", line {frames[-1].lineno}" if frames else ""
        raise UserError(f"{file}{line}: {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = before
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of {file} must return a ConfigDict, not {type(config).__name__}.")
    return config


def _override(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Set the fields of `overrides`."""
    values = flags.FlagValues()
    before, sys.argv = sys.argv, ["emu_jax", *overrides]  # config_flags reads sys.argv
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values)
        values(sys.argv)
    finally:
        sys.argv = before


def _unknown_field(file: str, config: ConfigDict, overrides: Sequence[str], error: Exception) -> str:
    """Name the override with an unknown field, and the nearest field."""
    fields = _fields(config)
    for word in overrides:
        match = re.match(r"--config\.([^=]+)", word)
        if match and match[1] not in fields:
            close = difflib.get_close_matches(match[1], fields, n=1, cutoff=0.5)
            groups = ", ".join(sorted({field.split(".")[0] for field in fields}))
            hint = f"did you mean --config.{close[0]}?" if close else f"the top-level fields are {groups}."
            return f"--config.{match[1]} is not a field of {file}; {hint}"
    return f"{file}: {type(error).__name__}: {error}"


def _fields(config: Any, prefix: str = "") -> list[str]:
    """Return every field that can be set: "train.steps", "data.sets[0].path"."""
    if isinstance(config, ConfigDict):
        pairs = [(f"{prefix}.{key}" if prefix else key, config.get_oneway_ref(key).get()) for key in config]
    elif isinstance(config, list | tuple) and config and isinstance(config[0], ConfigDict):
        pairs = [(f"{prefix}[{i}]", item) for i, item in enumerate(config)]
    else:
        return [prefix]
    return [field for path, value in pairs for field in _fields(value, path)]
