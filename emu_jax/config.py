"""Convert between a user's ConfigDict or JSON and the frozen dataclasses inside the package."""

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from emu_jax.bounds import OutOfRange
from emu_jax.errors import UserError

T = TypeVar("T")


def _removed(value: Any) -> Callable[[Any], dict[str, Any]]:
    """Accept a removed field only with the value that is always used now."""

    def check(saved: Any) -> dict[str, Any]:
        if saved != value:
            raise UserError(f"was removed: its value is always {value!r} now, not {saved!r}")
        return {}

    return check


def _warmup(steps: float | int | None) -> dict[str, Any]:
    """Split a number of warm-up steps, or below 1 a fraction of all steps, into two fields."""
    is_fraction = steps is not None and 0 < steps < 1
    return {"warmup_fraction": steps} if is_fraction else {"warmup_steps": None if steps is None else int(steps)}


# Renamed and removed fields of saved configs: dataclass -> old name -> new name. A function maps the old value to the
# new fields and their values, where the value changes too, or raises UserError; None drops the old field.
RENAMED: dict[str, dict[str, str | Callable[[Any], dict[str, Any]] | None]] = {
    "VisionConfig": {"kept": "saved_activations"},
    "CausalFormerConfig": {"kept": "saved_activations"},
    "DecoderConfig": {"kept": "saved_activations"},
    "OptimizerConfig": {
        "final_share": "final_fraction",
        "cooldown_share": "cooldown_fraction",
        "warmup_steps": _warmup,
    },
    "CheckpointConfig": {"asynchronous": _removed(True)},
    "TrainConfig": {
        "collapse_variance": _removed(0.02),
        "collapse_rank": _removed(1.5),
        "run_ahead": _removed(2),
    },
    "PretrainConfig": {"regression_coefficient": "regression_weight", "text_coefficient": _removed(1.0)},
    "VAERunConfig": {"pictures": "images"},
    "VAETrainingConfig": {
        "divergence_coefficient": "divergence_weight",
        "absolute_coefficient": _removed(1.0),
        "squared_coefficient": _removed(1.0),
    },
}


def from_config_dict(cls: type[T], config: Mapping[str, Any] | Any, *, path: str = "config") -> T:
    """Build the frozen dataclass `cls`, including nested ones, from a mapping or an `ml_collections.ConfigDict`.

    Names from before a rename are accepted (`RENAMED`), so that configs saved by older versions load.

    Args:
      cls: a dataclass whose fields are scalars, enums, tuples, dicts, dataclasses, or `X | None` of these.
      config: values of the fields. Fields with a default are optional.
      path: position of `config` inside the complete config, for error messages.

    Raises:
      UserError: an unknown key (the message names the closest field), a missing key, or a value of the wrong type or
        outside the range of its field (`emu_jax.bounds`).
    """
    if not hasattr(config, "items"):
        raise UserError(f"{path} must hold the fields of {cls.__name__}, not {config!r}.")
    values = _current_names(cls.__name__, dict(config.items()), path)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise UserError(f"{path}.{key} is not a field of {cls.__name__}{_closest(str(key), fields)}.")
    missing = [name for name, field in fields.items() if name not in values and not _has_default(field)]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)} (fields of {cls.__name__}).")
    converted = {name: _convert(hints[name], value, f"{path}.{name}") for name, value in values.items()}
    try:
        return cls(**converted)
    except OutOfRange as error:
        raise UserError(f"{path}.{error}") from None


def to_dict(config: Any) -> Any:
    """Return the dataclass as dicts, lists and scalars that JSON can hold; `from_config_dict` reads them back."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, enum.Enum):
        return config.value
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return config


def _current_names(cls_name: str, values: dict[str, Any], path: str) -> dict[str, Any]:
    """Return `values` with the old names of `RENAMED` replaced."""
    for old, new in RENAMED.get(cls_name, {}).items():
        if old not in values:
            continue
        value = values.pop(old)
        try:
            renamed = new(value) if callable(new) else {} if new is None else {new: value}
        except UserError as error:
            raise UserError(f"{path}.{old} {error}.") from None
        for name in renamed:
            if name in values:
                raise UserError(f"{path}.{old} is the old name of {name}; {path} must not set both.")
        values |= renamed
    return values


def _closest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; its fields are {', '.join(known)}"


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert_union([a for a in arguments if a is not type(None)], value, path)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_config_dict(hint, value, path=path)  # type: ignore[arg-type]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            raise UserError(f"{path} must be one of {', '.join(repr(m.value) for m in hint)}, not {value!r}.") from None
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise UserError(f"{path} must be a list, not {value!r}.")
        item_hint = arguments[0] if len(arguments) == 2 and arguments[1] is Ellipsis else None
        hints = [item_hint] * len(value) if item_hint is not None else list(arguments)
        if len(hints) != len(value):
            raise UserError(f"{path} must have {len(hints)} values, not {len(value)}.")
        return tuple(
            _convert(hint, item, f"{path}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True))
        )
    if origin in (dict, Mapping) or hint is dict:
        return {
            key: _convert(arguments[1], item, f"{path}.{key}") if arguments else item
            for key, item in dict(value.items()).items()
        }
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise UserError(f"{path} must be {hint.__name__}, not {value!r}.")
    return value


def _convert_union(hints: list[Any], value: Any, path: str) -> Any:
    errors = []
    for hint in hints:
        try:
            return _convert(hint, value, path)
        except UserError as error:
            errors.append(error)
    raise errors[0]
