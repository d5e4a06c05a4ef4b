"""One step of a run on disk: its record of checksums, and its config. A model directory has a record, too.

The item `fingerprints` of a step is its record: the checksum of every array, the step, the checksum of the config, and
a checksum of the record. The data states hold the identity of the record, so that an item of another step is refused.
Checkpoints from before these checksums are read without the checks that they do not support.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from emu_jax.checkpoints.fingerprint import Fingerprints
from emu_jax.errors import UserError

PARAMS, OPTIMIZER, DATA, CONFIG, FINGERPRINTS = "params", "optimizer", "data", "config", "fingerprints"
_JSON_FILE = "metadata"  # name that Orbax gives to the file of a JSON item
_STEP_FIELDS = {"step", "identity", "config", "sha256"}


class DamagedError(UserError):
    """A part of a checkpoint is not what was saved."""


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """Checksums of a step, or of a model directory.

    Attributes:
      arrays: dtype, fingerprint and shape of each array by path; without the shape in older checkpoints.
      identity: checksum of the arrays and the step number, which the data states repeat; None in older checkpoints.
      config: checksum of the config; None in older checkpoints.
    """

    arrays: Mapping[str, Any]
    identity: str | None = None
    config: str | None = None


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of white space and the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def make_record(step: int | None, *, arrays: Fingerprints, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the content of the item `fingerprints`. In a model directory, `step` and `config` are None."""
    identity = digest([step, arrays])
    fields = {**arrays, "step": step, "identity": identity, "config": None if config is None else digest(config)}
    return fields | {"sha256": digest(fields)}


def write_record(directory: epath.Path, arrays: Fingerprints) -> None:
    """Write the record of the parameters in a model directory."""
    folder = directory / FINGERPRINTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _JSON_FILE).write_text(json.dumps(make_record(None, arrays=arrays, config=None)))


def remove_record(directory: epath.Path) -> None:
    """Remove the record of a model directory, before its parameters are replaced."""
    if (directory / FINGERPRINTS).exists():
        (directory / FINGERPRINTS).rmtree()


def read_record(step: epath.Path) -> StepRecord | None:
    """Return the record of a step or of a model directory; None if it was written before there were records.

    Raises:
      DamagedError: the record is damaged, missing, or of another step.
    """
    folder = step / FINGERPRINTS
    if not folder.exists():
        listing = step / "_CHECKPOINT_METADATA"
        if listing.exists() and FINGERPRINTS.encode() in listing.read_bytes():
            raise DamagedError(f"{FINGERPRINTS} is missing")
        return None
    values = _read_json(folder / _JSON_FILE)
    if not isinstance(values, dict):
        raise DamagedError(f"{FINGERPRINTS} is damaged")
    arrays = {name: value for name, value in values.items() if name.startswith("[")}
    if not arrays or not all(isinstance(value, list) and len(value) in (2, 3) for value in arrays.values()):
        raise DamagedError(f"{FINGERPRINTS} is damaged")
    others = values.keys() - arrays.keys()
    if not others and all(len(value) == 2 for value in arrays.values()):
        return StepRecord(arrays)
    sealed = {name: value for name, value in values.items() if name != "sha256"}
    if others != _STEP_FIELDS or values["sha256"] != digest(sealed):
        raise DamagedError(f"{FINGERPRINTS} is damaged")
    if values["step"] is not None and step.name.isdigit() and values["step"] != int(step.name):
        raise DamagedError(f"it is step {values['step']}, not {step.name}")
    return StepRecord(arrays, values["identity"], values["config"])


def check_shapes(saved: Mapping[str, Any], record: StepRecord | None, *, item: str) -> None:
    """Compare the shapes and dtypes in the metadata of an item, by fingerprint path, with the record.

    Raises:
      DamagedError: they differ.
    """
    if record is None or record.identity is None:
        return
    arrays = {name: value for name, value in record.arrays.items() if name.startswith(f"['{item}']")}
    expected = {_joined(name): (tuple(shape), dtype) for name, (dtype, _, shape) in arrays.items()}
    found = {_joined(name): (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in saved.items()}
    if found != expected:
        names = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
        raise DamagedError(f"the metadata of {item} differs from the saved one at {names[0]}")


def step_config(step: epath.Path) -> dict[str, Any] | None:
    """Return the config that was saved with a step; None if the folder has none.

    Raises:
      DamagedError: it is damaged, or of another step.
    """
    file = step / CONFIG / _JSON_FILE
    if not file.exists():
        record = read_record(step)
        if record is not None and record.config is not None:
            raise DamagedError(f"{CONFIG} is missing")
        return None
    values = _read_json(file)
    record = read_record(step)
    if not isinstance(values, dict) or (record is not None and record.config not in (None, digest(values))):
        raise DamagedError(f"{CONFIG} is damaged")
    return values


def steps_in(directory: epath.Path) -> list[int]:
    """Return the steps in a folder of checkpoints, oldest first; temporary and renamed folders are not steps."""
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def newest_config(directory: epath.Path) -> tuple[int, dict[str, Any]] | None:
    """Return the newest step whose config can be read, and its config; None if there is none."""
    for step in reversed(steps_in(directory)):
        try:
            config = step_config(directory / str(step))
        except DamagedError:
            continue
        if config is not None:
            return step, config
    return None


def _joined(path: str) -> str:
    """Return a path of `keystr` joined by "/". Orbax stores the fields of named tuples as keys of dictionaries."""
    return "/".join("".join(parts) for parts in re.findall(r"\['([^']+)'\]|\[(\d+)\]|\.(\w+)", path))


def _read_json(file: epath.Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{file.parent.name} cannot be read ({type(error).__name__})") from error
