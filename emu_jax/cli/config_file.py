"""--config=FILE, --workdir=DIR and --config.field=value, as in every ml_collections project, with clear mistakes."""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from emu_jax.errors import UserError
from emu_jax.io.mirror import is_remote


def read_flags(argv: list[str]) -> tuple[ConfigDict, str]:
    """The config with its overrides, and the workdir: an absolute path, or a URL as `gs://BUCKET/run`.

    Raises:
      UserError: as `read_config`; no workdir.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Where the run lives.", flag_values=values)
    flags.DEFINE_bool("profile", False, "Short for --config.train.profile=true.", flag_values=values)
    config = read_config(argv, beside=values)
    if not values["workdir"].value:
        raise UserError("--workdir is missing: the folder where the run lives.")
    if values["profile"].value:
        config.train.profile = True
    workdir = values["workdir"].value
    return config, workdir if is_remote(workdir) else str(Path(workdir).absolute())


def read_config(argv: list[str], *, beside: flags.FlagValues | None = None) -> ConfigDict:
    """The config that `argv` names, with its overrides; `beside` are other flags that may stand there, and are set.

    Raises:
      UserError: a flag or a field that does not exist (the nearest is named), no such file, a value of another type.
    """
    values = flags.FlagValues() if beside is None else beside
    config_flags.DEFINE_config_file("config", None, "Path of a config file.", flag_values=values)
    before, sys.argv = sys.argv, ["train", *argv]  # config_flags looks for overrides there and nowhere else
    try:
        rest = values(sys.argv)[1:]
        config = values["config"].value
        if config is not None:
            _ = config.items  # a file that could not be loaded raises only when it is looked at
    except flags.Error as error:
        raise UserError(str(error)) from None
    except (AttributeError, KeyError, IndexError) as error:
        raise UserError(_unknown_field(argv, error)) from None
    except OSError as error:
        path = _config_path(argv)
        close = difflib.get_close_matches(path, [str(p) for p in Path(path).parent.glob("*.py")], n=1)
        hint = f"did you mean {close[0]}?" if close else "name a file with a get_config()."
        raise UserError(f"There is no config file {path}; {hint}") from error
    finally:
        sys.argv = before
    if rest:
        raise UserError(f"{rest[0]!r} is not understood; fields are set as --config.train.steps=2000.")
    if config is None:
        raise UserError("--config is missing, as in --config=configs/tiny.py.")
    return config


def _config_path(argv: list[str]) -> str:
    for i, word in enumerate(argv):
        if word.startswith(("--config=", "-config=")):
            return word.split("=", 1)[1]
        if word in ("--config", "-config") and i + 1 < len(argv):
            return argv[i + 1]
    return "--config"


def _unknown_field(argv: list[str], error: Exception) -> str:
    """Names the override that does not exist and the nearest that does, whatever config_flags said of it."""
    fields = _fields(_load(_config_path(argv)))
    for word in argv:
        match = re.match(r"--config\.([^=]+)", word)
        if match and match[1] not in fields:
            close = difflib.get_close_matches(match[1], fields, n=1, cutoff=0.5)
            groups = ", ".join(sorted({field.split(".")[0] for field in fields}))
            hint = f"; did you mean --config.{close[0]}?" if close else f"; the groups of fields are {groups}"
            return f"--config.{match[1]} is not a field of {_config_path(argv)}{hint}"
    return f"{_config_path(argv)} failed: {type(error).__name__}: {error}"


def _load(path: str) -> Any:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    before, sys.argv = sys.argv, ["train"]
    try:
        values(["train", f"--config={path}"])
        return values["config"].value
    except Exception:
        return ConfigDict()
    finally:
        sys.argv = before


def _fields(config: Any, prefix: str = "") -> list[str]:
    """Every settable path: "train.steps", "data.sets[0].path"."""
    if isinstance(config, ConfigDict):
        pairs = [(f"{prefix}.{key}" if prefix else key, config.get_oneway_ref(key).get()) for key in config]
    elif isinstance(config, list | tuple) and config and isinstance(config[0], ConfigDict):
        pairs = [(f"{prefix}[{i}]", item) for i, item in enumerate(config)]
    else:
        return [prefix]
    return [field for path, value in pairs for field in _fields(value, path)]
