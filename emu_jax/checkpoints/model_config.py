"""The config.json of a model directory or of a training run."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emu_jax.config import from_config_dict, to_dict
from emu_jax.errors import UserError
from emu_jax.io.files import read_json, write_json
from emu_jax.models.config import EmuConfig

CONFIG = "config.json"


def find_config(checkpoint: Path) -> Path | None:
    """Return the config.json of a model directory, of a run, or of one step of a run (two levels up)."""
    folders = (checkpoint, *Path(os.path.abspath(checkpoint)).parents[:2])
    return next((folder / CONFIG for folder in folders if (folder / CONFIG).is_file()), None)


def read_config(path: Path) -> EmuConfig:
    """Return the EmuConfig in the config.json of a model directory or a run.

    Raises:
      UserError: the file is missing, is not JSON, or is not the config of an Emu.
    """
    return emu_config(read_object(path), source=path)


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a config.json.

    Raises:
      UserError: the file is missing, or is not a JSON object.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object.")
    return values


def emu_config(values: Mapping[str, Any], *, source: Path) -> EmuConfig:
    """Return the EmuConfig in the values of a config.json.

    Raises:
      UserError: they are not the config of an Emu.
    """
    model = values["model"] if isinstance(values.get("model"), dict) else values  # a run's config has it as a part
    if "decoder" not in model:
        raise UserError(
            f"{source} is not the config of an Emu: it has neither our layout (vision, causal_former, decoder) nor "
            "that of the release (vision, cformer, lm)."
        )
    return from_config_dict(EmuConfig, model, path=source.name)


def write_config(path: Path, config: EmuConfig) -> None:
    """Write `config` so that `read_config` reads it."""
    write_json(path, to_dict(config), indent=2)
