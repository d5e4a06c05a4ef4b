"""Every number of every config has a range, which is checked however the config is made."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest

import emu_jax
from emu_jax.bounds import Between, Checked, OutOfRange, field_types
from emu_jax.config import from_config_dict
from emu_jax.errors import UserError
from emu_jax.evaluation.predictors import RankOptions
from emu_jax.generation.options import TextOptions
from emu_jax.models.config import EmuConfig
from emu_jax.models.presets import PRESETS
from emu_jax.scaling.plan import Plan, Run

# Written by this package and read back, or not a config in spite of its name.
NOT_CONFIGS = (Plan, Run, RankOptions)


def config_classes() -> list[type]:
    """Return every dataclass of the package that is a config: by its name, its base, or as a field of one."""
    found: dict[type, None] = {}

    def add(cls: type) -> None:
        if cls in found or cls in NOT_CONFIGS:
            return
        found[cls] = None
        for hint in field_types(cls).values():
            for inner in parts(hint):
                if dataclasses.is_dataclass(inner) and isinstance(inner, type):
                    add(inner)

    for module in pkgutil.walk_packages(emu_jax.__path__, "emu_jax."):
        if module.name.endswith("__main__"):
            continue
        for cls in vars(importlib.import_module(module.name)).values():
            ours = isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == module.name
            if ours and (issubclass(cls, Checked) or cls.__name__.endswith(("Config", "Options", "Limits"))):
                add(cls)
    return list(found)


def parts(hint: Any) -> Iterator[Any]:
    """Yield the types in a hint; a type with a range is yielded with it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple, dict):
        for inner in typing.get_args(hint):
            yield from parts(inner)
    else:
        yield hint


CLASSES = config_classes()


def test_finds_the_configs() -> None:
    names = {cls.__name__ for cls in CLASSES}
    assert {"DecoderConfig", "UNetConfig", "TrainConfig", "MeshConfig", "EngineConfig", "LoraConfig"} <= names
    assert {"NoiseSchedule", "StudyConfig", "Limits", "TextOptions", "WeightedSet", "EvaluationConfig"} <= names


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_number_has_a_range(cls: type) -> None:
    missing = [name for name, hint in field_types(cls).items() for part in parts(hint) if part in (int, float)]
    assert missing == [], f"{cls.__name__} has numbers without a range; use a type of emu_jax.bounds"
    ranges = [part for hint in field_types(cls).values() for part in parts(hint) if hasattr(part, "__metadata__")]
    assert issubclass(cls, Checked) or not ranges, f"{cls.__name__} must have the base class Checked"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_ranges_are_finite(cls: type) -> None:
    for hint in field_types(cls).values():
        for part in parts(hint):
            for one in getattr(part, "__metadata__", ()):
                assert not isinstance(one, Between) or (math.isfinite(one.low) and math.isfinite(one.high))


@dataclasses.dataclass(frozen=True)
class Inner(Checked):
    sizes: tuple[Annotated[int, Between(1, 8)], ...] = ()
    heads: Annotated[int, Between(1, 8)] | tuple[Annotated[int, Between(1, 8)], ...] = 1
    rate: Annotated[float, Between(0.0, 1.0)] | None = None


@dataclasses.dataclass(frozen=True)
class Outer(Checked):
    inner: Inner


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": math.nan}, "config.inner.rate must be a number from 0.0 to 1.0, not nan"),
        ({"rate": math.inf}, "config.inner.rate must be a number from 0.0 to 1.0, not inf"),
        ({"rate": -0.1}, "config.inner.rate must be a number"),
        ({"sizes": [1, 0]}, r"config.inner.sizes\[1\] must be an integer from 1 to 8, not 0"),
        ({"heads": 9}, "config.inner.heads must be an integer from 1 to 8, not 9"),
        ({"heads": [8, 2**70]}, r"config.inner.heads\[1\] must be an integer"),
    ],
)
def test_names_the_field(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_config_dict(Outer, {"inner": values})


def test_checks_in_python_too() -> None:
    for wrong in ("1", True, None, 1.5, [1]):
        with pytest.raises(OutOfRange, match="num_beams must be an integer from 1 to 64"):
            TextOptions(num_beams=wrong)  # type: ignore[arg-type]


BAD_NUMBERS = (-1, 0, 2**40, -(2**40), math.nan, math.inf, -math.inf, True, None, "3", [], {}, 1e300, 0.5)


def emu_config(values: dict[str, Any]) -> EmuConfig | None:
    try:
        return from_config_dict(EmuConfig, values)
    except UserError:
        return None


def test_a_model_config_with_a_bad_field_is_refused_or_computes() -> None:
    """Any bad number in a config.json gives one line, or a config whose sizes fit each other."""
    import jax
    import jax.numpy as jnp

    from emu_jax.config import to_dict
    from emu_jax.models.emu import Emu

    values = to_dict(PRESETS["emu_tiny"](vocab_size=64))
    refused = accepted = 0
    for part in ("vision", "causal_former", "decoder"):
        for name in values[part]:
            for bad in BAD_NUMBERS:
                config = emu_config(values | {part: values[part] | {name: bad}})
                if config is None or config.decoder.vocab_size == 0:  # 0: that of the tokenizer
                    refused += 1
                    continue
                accepted += 1
                queries, size = config.causal_former.num_image_tokens, config.vision.image_size
                tokens = jnp.zeros((1, queries), jnp.int32)
                images = jax.ShapeDtypeStruct((1, 1, size, size, 3), jnp.uint8)
                model = Emu(config, image_token_id=0)
                jax.eval_shape(model.init, jax.random.key(0), tokens, images)
    assert refused > 300
    assert accepted < 60
