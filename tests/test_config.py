"""Configs to frozen dataclasses and back: accepted values, renamed fields, and errors."""

from __future__ import annotations

import dataclasses
import enum
import json
import typing
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from emu_jax import config as config_module
from emu_jax.config import RENAMED, from_config_dict, to_dict
from emu_jax.errors import UserError
from emu_jax.training.config import OptimizerConfig
from emu_jax.training.runs.emu import EmuRunConfig
from emu_jax.training.runs.vae import VAERunConfig
from emu_jax.training.runs.visual_decoder import VisualDecoderRunConfig
from emu_jax.training.stages.pretrain import PretrainConfig

# The config.json of four runs, written before the fields of `RENAMED` got their new names.
OLD_CONFIGS = Path(__file__).parent / "golden" / "configs_before_renames.json"
RUNS = {
    "captions": EmuRunConfig,
    "pretrain_14b": EmuRunConfig,
    "vae": VAERunConfig,
    "unet": VisualDecoderRunConfig,
}


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
def test_nested_fields(wrap: type) -> None:
    assert from_config_dict(Outer, wrap(FULL)) == BUILT


def test_fields_with_defaults_are_optional() -> None:
    assert from_config_dict(Outer, {"inner": {"width": 3}}) == Outer(Inner(3))


def test_json_round_trip() -> None:
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
def test_errors_name_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        from_config_dict(Outer, FULL | changes)
    assert str(caught.value).startswith(message)


@dataclasses.dataclass(frozen=True)
class Renamed:
    width: int = 0
    steps: int = 0
    fraction: float = 0.0


@pytest.fixture
def renamed_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    split = lambda value: {"fraction": value} if value < 1 else {"steps": int(value)}
    monkeypatch.setitem(config_module.RENAMED, "Renamed", {"size": "width", "gone": None, "warmup": split})


@pytest.mark.usefixtures("renamed_fields")
@pytest.mark.parametrize(
    ("old", "expected"),
    [
        ({"size": 3}, Renamed(width=3)),
        ({"width": 3}, Renamed(width=3)),
        ({"gone": "anything"}, Renamed()),
        ({"warmup": 0.25}, Renamed(fraction=0.25)),
        ({"warmup": 5.0}, Renamed(steps=5)),
    ],
)
def test_old_names_are_read(old: dict[str, Any], expected: Renamed) -> None:
    assert from_config_dict(Renamed, old) == expected


@pytest.mark.usefixtures("renamed_fields")
def test_old_and_new_name_together_are_an_error() -> None:
    with pytest.raises(UserError, match=r"config\.size is the old name of width; config must not set both"):
        from_config_dict(Renamed, {"size": 3, "width": 4})


@pytest.mark.parametrize("name", RUNS)
def test_configs_saved_before_the_renames_load(name: str) -> None:
    run = from_config_dict(RUNS[name], json.loads(OLD_CONFIGS.read_text())[name])
    assert from_config_dict(RUNS[name], to_dict(run)) == run


def test_values_under_old_names_arrive_under_the_new_ones() -> None:
    old = json.loads(OLD_CONFIGS.read_text())
    model = from_config_dict(EmuRunConfig, old["pretrain_14b"]).model
    assert model.decoder.saved_activations == tuple(old["pretrain_14b"]["model"]["decoder"]["kept"]) != ()
    optimizer = from_config_dict(EmuRunConfig, old["captions"]).train.optimizer
    assert optimizer.final_fraction == old["captions"]["train"]["optimizer"]["final_share"] == 0.125
    assert optimizer.cooldown_fraction == old["captions"]["train"]["optimizer"]["cooldown_share"] == 0.375


def test_warmup_steps_below_one_was_a_fraction() -> None:
    read = lambda value: from_config_dict(OptimizerConfig, {"warmup_steps": value})
    assert read(0.25) == OptimizerConfig(warmup_fraction=0.25)
    assert read(100.0) == read(100) == OptimizerConfig(warmup_steps=100)
    assert read(0.0) == OptimizerConfig(warmup_steps=0)
    assert read(None) == OptimizerConfig()
    new = OptimizerConfig(warmup_fraction=0.5)
    assert from_config_dict(OptimizerConfig, to_dict(new)) == new


def test_a_removed_field_loads_only_with_the_value_that_is_fixed_now() -> None:
    assert from_config_dict(PretrainConfig, {"text_coefficient": 1.0}) == PretrainConfig()
    with pytest.raises(
        UserError, match=r"config\.text_coefficient was removed: its value is always 1\.0 now, not 0\.5"
    ):
        from_config_dict(PretrainConfig, {"text_coefficient": 0.5})


def test_every_new_name_is_a_field() -> None:
    def nested(hint: Any) -> set[type]:
        found = {hint} if dataclasses.is_dataclass(hint) else set()
        inner = typing.get_type_hints(hint).values() if found else typing.get_args(hint)
        return found.union(*map(nested, inner))

    classes = {cls.__name__: cls for run in set(RUNS.values()) for cls in nested(run)}
    for cls, names in RENAMED.items():
        fields = {field.name for field in dataclasses.fields(classes[cls])}
        for old, new in names.items():
            assert callable(new) or (old not in fields and new in fields | {None}), (cls, old, new)
