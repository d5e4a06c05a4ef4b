"""Read --config=FILE with overrides --config.FIELD=VALUE, as in other ml_collections projects, with clear errors."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from emu_jax.errors import UserError
from emu_jax.io.paths import local_text, path_or_url

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
      UserError: no such file, an unknown field (the nearest one is named), a value of the wrong type, or a URL in a
        field that must be a local path.
    """
    path = local_text(path)
    try:
        config = _load(path, overrides)
        _ = config.items  # config_flags raises the errors of loading a file at the first use
    except flags.Error as error:
        raise UserError(str(error)) from None
    except (AttributeError, KeyError, IndexError) as error:
        raise UserError(_unknown_field(path, overrides, error)) from None
    except OSError as error:
        file = Path(path.partition(":")[0])
        close = difflib.get_close_matches(str(file), [str(other) for other in file.parent.glob("*.py")], n=1)
        hint = f"did you mean {close[0]}?" if close else "name a file with a get_config()."
        raise UserError(f"There is no config file {file}; {hint}") from error
    _check_paths(config)
    return config


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


def _load(path: str, overrides: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "Config file.", flag_values=values)
    before, sys.argv = sys.argv, ["emu_jax", f"--config={path}", *overrides]  # config_flags reads sys.argv
    try:
        values(sys.argv)
        return values["config"].value
    finally:
        sys.argv = before


def _unknown_field(path: str, overrides: Sequence[str], error: Exception) -> str:
    """Name the override with an unknown field and the nearest field; without one, describe `error`."""
    try:
        fields = _fields(_load(path, ()))
    except Exception:
        fields = []
    for word in overrides if fields else ():
        match = re.match(r"--config\.([^=]+)", word)
        if match and match[1] not in fields:
            close = difflib.get_close_matches(match[1], fields, n=1, cutoff=0.5)
            groups = ", ".join(sorted({field.split(".")[0] for field in fields}))
            hint = f"did you mean --config.{close[0]}?" if close else f"the top-level fields are {groups}."
            return f"--config.{match[1]} is not a field of {path}; {hint}"
    return f"{path} failed: {type(error).__name__}: {error}"


def _fields(config: Any, prefix: str = "") -> list[str]:
    """Return every field that can be set: "train.steps", "data.sets[0].path"."""
    if isinstance(config, ConfigDict):
        pairs = [(f"{prefix}.{key}" if prefix else key, config.get_oneway_ref(key).get()) for key in config]
    elif isinstance(config, list | tuple) and config and isinstance(config[0], ConfigDict):
        pairs = [(f"{prefix}[{i}]", item) for i, item in enumerate(config)]
    else:
        return [prefix]
    return [field for path, value in pairs for field in _fields(value, path)]
