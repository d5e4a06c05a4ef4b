"""Fields of a request, read by name and type; a wrong one is a 400 that names it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Mapping
from typing import Any

from emu_jax.serving.errors import ApiError, bad_field

_LARGEST = sys.float_info.max  # an integer of JSON can be larger, which float() refuses


class Fields:
    """The fields of a JSON object, or of a form (whose values are texts). A field that is null is missing."""

    def __init__(self, values: Mapping[str, Any], *, known: Collection[str], form: bool = False) -> None:
        """Raise ApiError for a field that is probably a misspelling; other unknown fields are ignored."""
        self._values, self._form = values, form
        for name in values:
            if name not in known and (close := difflib.get_close_matches(name, known, n=1, cutoff=0.85)):
                raise bad_field(name, f"is not a field; did you mean {close[0]}?")

    def get(self, name: str) -> Any:
        """Return a field as it is, None where it is missing."""
        return self._values.get(name)

    def integer(self, name: str, default: Any = None, *, least: int | None = None, most: int | None = None) -> Any:
        """Return an integer between `least` and `most`."""
        value = self._number(name)
        if value is None:
            return default
        if not (isinstance(value, int) or value.is_integer()):
            raise bad_field(name, f"must be an integer, not {value}.")
        return self._bounded(name, int(value), least, most)

    def number(self, name: str, default: Any = None, *, least: float | None = None, most: float | None = None) -> Any:
        """Return a finite number between `least` and `most`."""
        value = self._number(name)
        return default if value is None else self._bounded(name, float(value), least, most)

    def flag(self, name: str) -> bool:
        """Return a boolean, False where it is missing."""
        value = self.get(name)
        if self._form and isinstance(value, str) and value in ("true", "false"):
            value = value == "true"
        if value is not None and not isinstance(value, bool):
            raise bad_field(name, f"must be true or false, not {_shown(value)}.")
        return bool(value)

    def text(self, name: str, default: Any = None) -> Any:
        """Return a string."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise bad_field(name, f"must be a string, not {_shown(value)}.")
        return default if value is None else value

    def choice(self, name: str, choices: Collection[str], default: str) -> str:
        """Return one of some strings."""
        value = self.text(name, default)
        if value not in choices:
            raise bad_field(name, f"must be one of {', '.join(map(repr, choices))}, not {value!r}.")
        return value

    def texts(self, name: str, *, most: int) -> tuple[str, ...]:
        """Return a string or a list of strings as a tuple, at most `most` of them and none empty."""
        value = self.get(name)
        found = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
            raise bad_field(name, "must be a string or a list of strings, none of them empty.")
        if len(found) > most:
            raise bad_field(name, f"has {len(found)} strings; at most {most} are allowed.")
        return tuple(found)

    def refuse(self, name: str, *, unless: Collection[Any], why: str) -> None:
        """Raise ApiError where a field is present and asks for something that is not served."""
        value = self.get(name)
        if value is not None and value not in unless:
            raise bad_field(name, f"{why} (given: {_shown(value)}).")

    def _number(self, name: str) -> int | float | None:
        value = self.get(name)
        if self._form and isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise bad_field(name, f"must be a number, not {value!r}.") from None
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
            raise bad_field(name, f"must be a number, not {_shown(value)}.")
        return value

    @staticmethod
    def _bounded(name: str, value: Any, least: float | None, most: float | None) -> Any:
        if least is not None and value < least:
            raise bad_field(name, f"must be at least {least}, not {value}.")
        if most is not None and value > most:
            raise bad_field(name, f"must be at most {most}, not {value}.")
        return value


def json_object(value: Any, name: str = "the body") -> Mapping[str, Any]:
    """Return a JSON object. Raise ApiError for anything else."""
    if not isinstance(value, dict):
        raise ApiError(400, f"{name} must be a JSON object, not {_shown(value)}.", param=None if " " in name else name)
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
