"""Emu in JAX: one autoregressive model over interleaved text and images.

Importing this package loads nothing else: no JAX, no device, no environment variable.

    emu = emu_jax.load("DIR")                               # generation.api.load
    decoder = emu_jax.load_visual_decoder("DIR")            # convert.visual_decoder.load_visual_decoder
    result = emu_jax.evaluate(emu, "vqav2", "ROOT")         # evaluation.api.evaluate
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emu_jax.convert.visual_decoder import load_visual_decoder
    from emu_jax.data.media_paths import Image, Video
    from emu_jax.errors import UserError
    from emu_jax.evaluation.api import evaluate
    from emu_jax.generation.api import load

__version__ = "0.1.0"
__all__ = ["Image", "UserError", "Video", "evaluate", "load", "load_visual_decoder"]

_HOME = {
    "Image": "emu_jax.data.media_paths",
    "UserError": "emu_jax.errors",
    "Video": "emu_jax.data.media_paths",
    "evaluate": "emu_jax.evaluation.api",
    "load": "emu_jax.generation.api",
    "load_visual_decoder": "emu_jax.convert.visual_decoder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
