"""Options as people write them, `num_beams=5`: checked by name and value before any work."""

import dataclasses
from typing import Any

from emu_jax.diffusion.options import ImageOptions
from emu_jax.errors import UserError
from emu_jax.generation.sampling import TextOptions


def text_options(**options: Any) -> TextOptions:
    """Raises UserError for an option that there is not."""
    return _dataclass_of(TextOptions, options)


def image_options(**options: Any) -> ImageOptions:
    """Raises UserError for an option that there is not."""
    return _dataclass_of(ImageOptions, options)


def _dataclass_of(cls: Any, options: dict[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(cls)]
    for name in options:
        if name not in known:
            raise UserError(f"There is no option {name!r}; there are {', '.join(known)}.")
    return cls(**options)
