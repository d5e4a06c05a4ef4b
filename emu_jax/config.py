"""ConfigDict at the edge, frozen dataclasses inside: the one bridge between the two."""

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from emu_jax.errors import UserError

T = TypeVar("T")


def from_config_dict(cls: type[T], config: Mapping[str, Any] | Any, *, path: str = "config") -> T:
    """Builds the frozen dataclass `cls`, nested ones included, from a mapping or an `ml_collections.ConfigDict`.

    Args:
      cls: a dataclass whose fields are scalars, enums, tuples, dicts, dataclasses, or `X | None` of these.
      config: what the user wrote. A field that has a default may be left out.
      path: where `config` stands in the whole, for the error's wording.

    Raises:
      UserError: a key that `cls` does not know (the nearest name is given), a missing key, or a value of another type.
    """
    if not hasattr(config, "items"):
        raise UserError(f"{path} must hold the fields of {cls.__name__}, not {config!r}.")
    values = dict(config.items())
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise UserError(f"{path}.{key} is not a field of {cls.__name__}{_nearest(str(key), fields)}.")
    missing = [name for name, field in fields.items() if name not in values and not _has_default(field)]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)} (fields of {cls.__name__}).")
    return cls(**{name: _convert(hints[name], value, f"{path}.{name}") for name, value in values.items()})


def to_dict(config: Any) -> Any:
    """The dataclass as plain dicts, lists and scalars, fit for JSON; `from_config_dict` reads it back."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, enum.Enum):
        return config.value
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return config


def _nearest(name: str, known: Mapping[str, Any]) -> str:
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
        inner = arguments[0] if len(arguments) == 2 and arguments[1] is Ellipsis else None
        kinds = [inner] * len(value) if inner is not None else list(arguments)
        if len(kinds) != len(value):
            raise UserError(f"{path} must have {len(kinds)} values, not {len(value)}.")
        return tuple(
            _convert(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
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
