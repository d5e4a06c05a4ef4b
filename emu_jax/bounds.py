"""Ranges of config fields, declared in their types: `width: Size = 512`.

`Checked` checks them whenever a config is made: from a ConfigDict, from flags, from a config.json, and in Python.
"""

import functools
import numbers
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from emu_jax.errors import UserError


class OutOfRange(UserError):
    """A field with a value outside its range; the message starts with the name of the field."""


@dataclass(frozen=True)
class Between:
    """Numbers from `low` to `high`, both included, without NaN. Two integers are for integer fields."""

    low: float
    high: float

    def check(self, name: str, value: Any) -> None:
        """Raise OutOfRange unless `value` is in the range."""
        integer = isinstance(self.low, int) and isinstance(self.high, int)
        kind: Any = numbers.Integral if integer else numbers.Real
        if not isinstance(value, kind) or isinstance(value, bool) or not self.low <= value <= self.high:
            noun = "an integer" if integer else "a number"
            raise OutOfRange(f"{name} must be {noun} from {self.low} to {self.high}, not {value!r}.")


@dataclass(frozen=True)
class OneOf:
    """Texts that are permitted."""

    values: tuple[str, ...]

    def check(self, name: str, value: Any) -> None:
        """Raise OutOfRange unless `value` is one of the values."""
        if value not in self.values:
            raise OutOfRange(f"{name} must be one of {', '.join(map(repr, self.values))}, not {value!r}.")


# Sizes of models. The largest ones are far above those of any published model; the memory that a run needs is checked
# before its parameters are made (`training.state.check_memory`).
Size = Annotated[int, Between(1, 2**17)]  # width of a layer, number of channels
Depth = Annotated[int, Between(1, 1024)]  # number of layers or heads
Pixels = Annotated[int, Between(1, 16_384)]  # of one side of an image
Tokens = Annotated[int, Between(1, 2**20)]  # length of a sequence
VocabSize = Annotated[int, Between(0, 2**24)]  # 0: that of the tokenizer
Dtype = Annotated[str, OneOf(("float32", "bfloat16", "float16"))]
Epsilon = Annotated[float, Between(0.0, 1.0)]

# Numbers of things, and real numbers.
Count = Annotated[int, Between(1, 10**9)]
CountOrZero = Annotated[int, Between(0, 10**9)]
NumBytes = Annotated[int, Between(1, 2**50)]
NumFrames = Annotated[int, Between(1, 4096)]  # of a video
NumProcesses = Annotated[int, Between(0, 1024)]  # 0: this process only
Seed = Annotated[int, Between(0, 2**32 - 1)]
Fraction = Annotated[float, Between(0.0, 1.0)]
Positive = Annotated[float, Between(1e-12, 1e30)]
NonNegative = Annotated[float, Between(0.0, 1e30)]
Rate = Annotated[float, Between(0.0, 1000.0)]  # learning rate, weight decay
Seconds = Annotated[float, Between(1e-3, 1e7)]


class Checked:
    """Base class of configs. A subclass with its own `__post_init__` calls `super().__post_init__()` first."""

    def __post_init__(self) -> None:
        for name, hint in field_types(type(self)).items():  # type: ignore[arg-type]
            _check(name, hint, getattr(self, name))


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the types of the fields of a dataclass, with their ranges."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: hints[name] for name in cls.__dataclass_fields__}  # type: ignore[attr-defined]


def _check(name: str, hint: Any, value: Any) -> None:
    """Raise OutOfRange unless `value` is in the ranges of the type `hint`. Types are checked by `from_config_dict`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        for constraint in hint.__metadata__:
            constraint.check(name, value)
    elif origin in (typing.Union, types.UnionType):
        if value is not None:
            _check_union(name, [one for one in arguments if one is not type(None)], value)
    elif origin is tuple and isinstance(value, tuple):
        hints = arguments[:1] * len(value) if arguments[1:] == (Ellipsis,) else arguments
        for i, (one, item) in enumerate(zip(hints, value, strict=False)):
            _check(f"{name}[{i}]", one, item)


def _check_union(name: str, hints: list[Any], value: Any) -> None:
    """Check the member of a union that `value` can be: the tuple for a tuple, otherwise another one."""
    for hint in hints:
        if (typing.get_origin(hint) is tuple) == isinstance(value, tuple):
            _check(name, hint, value)
            return
