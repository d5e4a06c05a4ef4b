"""The config.json of a model directory or of a training run."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from emu_jax.checkpoints.step import step_config
from emu_jax.config import from_config_dict, to_dict
from emu_jax.errors import UserError
from emu_jax.io.files import read_json, write_json
from emu_jax.io.paths import absolute_path
from emu_jax.models.config import EmuConfig

CONFIG = "config.json"
STEP_CONFIG = "config/metadata"  # of one step of a run, as Orbax names it


def find_config(checkpoint: str | os.PathLike[str]) -> epath.Path | None:
    """Return the config.json of a model directory or of a run, or the config that was saved with a step.

    Args:
      checkpoint: local folder, or `gs://...`.

    Raises:
      DamagedError: the config of the step is damaged.
    """
    folder = absolute_path(checkpoint)
    if step_config(folder) is not None:
        return folder / STEP_CONFIG
    folders = (folder, *(list(folder.parents)[:2] if folder.name.isdigit() else ()))  # RUN/checkpoints/STEP
    return next((one / CONFIG for one in folders if (one / CONFIG).is_file()), None)


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
        raise UserError(f"{path} must contain a JSON object.")
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
    config = from_config_dict(EmuConfig, model, path=source.name)
    if config.decoder.vocab_size == 0:
        raise UserError(f"{source} has decoder.vocab_size 0; write the number of tokens of the model.")
    return config


def write_config(path: Path, config: EmuConfig) -> None:
    """Write `config` so that `read_config` reads it."""
    write_json(path, to_dict(config), indent=2)
