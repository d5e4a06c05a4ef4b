"""Options as people write them, `num_beams=5`: checked by name and value before any work."""

import dataclasses
from typing import Any

from emu_jax.diffusion.decoder import check_sampling
from emu_jax.errors import UserError
from emu_jax.generation.sampling import TextOptions


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """What a user may ask of the visual decoder; `height` and `width` in pixels, default: as it was trained."""

    sampler: str = "pndm"
    steps: int = 50
    guidance_scale: float = 7.5
    seed: int = 0
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        check_sampling(sampler=self.sampler, steps=self.steps, guidance_scale=self.guidance_scale)
        if not 0 <= self.seed < 2**32:
            raise UserError(f"A seed of pictures lies between 0 and {2**32 - 1}, which {self.seed} does not.")


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
