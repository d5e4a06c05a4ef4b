"""The one bridge from what a user wrote to frozen dataclasses: what it takes, and what it says to mistakes."""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Any

import pytest
from ml_collections import ConfigDict

from emu_jax.config import from_config_dict, to_dict
from emu_jax.errors import UserError


class Order(enum.Enum):
    FIRST = "first"
    LAST = "last"


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    order: Order = Order.FIRST
    sizes: tuple[int, ...] = ()
    pair: tuple[str, float] = ("a", 1.0)
    named: dict[str, float] = dataclasses.field(default_factory=dict)
    limit: int | None = None
    parts: tuple[Inner, ...] = ()
    remat: bool = False


FULL = {
    "inner": {"width": 3, "rate": 1},
    "order": "last",
    "sizes": [1, 2],
    "pair": ["b", 2],
    "named": {"x": 1},
    "limit": 7,
    "parts": [{"width": 1}, {"width": 2, "rate": 0.25}],
    "remat": True,
}
BUILT = Outer(
    inner=Inner(3, 1.0),
    order=Order.LAST,
    sizes=(1, 2),
    pair=("b", 2.0),
    named={"x": 1.0},
    limit=7,
    parts=(Inner(1), Inner(2, 0.25)),
    remat=True,
)


@pytest.mark.parametrize("wrap", [dict, ConfigDict], ids=["dict", "ConfigDict"])
def test_nested_fields_are_built(wrap: type) -> None:
    assert from_config_dict(Outer, wrap(FULL)) == BUILT


def test_defaults_may_be_left_out() -> None:
    assert from_config_dict(Outer, {"inner": {"width": 3}}) == Outer(Inner(3))


def test_what_is_written_as_json_is_read_back_equal() -> None:
    assert from_config_dict(Outer, json.loads(json.dumps(to_dict(BUILT)))) == BUILT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ordre": "first"}, "config.ordre is not a field of Outer; did you mean order?"),
        ({"inner": {"width": 3, "rat": 1.0}}, "config.inner.rat is not a field of Inner; did you mean rate?"),
        ({"qqqqqq": 1}, "config.qqqqqq is not a field of Outer; its fields are inner, order"),
        ({"inner": {}}, "config.inner lacks width"),
        ({"inner": {"width": 3.5}}, "config.inner.width must be int, not 3.5"),
        ({"inner": {"width": True}}, "config.inner.width must be int, not True"),
        ({"inner": 3}, "config.inner must hold the fields of Inner, not 3"),
        ({"order": "middle"}, "config.order must be one of 'first', 'last', not 'middle'"),
        ({"sizes": 3}, "config.sizes must be a list, not 3"),
        ({"sizes": [1, "2"]}, "config.sizes[1] must be int, not '2'"),
        ({"pair": ["b"]}, "config.pair must have 2 values, not 1"),
        ({"parts": [{"width": 1}, {"with": 2}]}, "config.parts[1].with is not a field of Inner; did you mean width?"),
        ({"remat": "yes"}, "config.remat must be bool, not 'yes'"),
        ({"limit": "seven"}, "config.limit must be int, not 'seven'"),
    ],
)
def test_mistakes_are_named_with_their_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        from_config_dict(Outer, FULL | changes)
    assert str(caught.value).startswith(message)
