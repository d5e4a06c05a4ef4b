"""Options of the visual decoder: the defaults and the checks of their values."""

import dataclasses
import enum
from typing import Annotated

from emu_jax.bounds import Between, Checked, Seed
from emu_jax.errors import UserError


class Sampler(enum.Enum):
    """The samplers by their names in options."""

    PNDM = "pndm"
    DDIM = "ddim"
    DPM_SOLVER_PP = "dpm-solver++"


@dataclasses.dataclass(frozen=True)
class ImageOptions(Checked):
    """Options for sampling images.

    Attributes:
      sampler: "pndm" (the release's), "ddim", or "dpm-solver++" (good results with 20 steps).
      steps: number of sampling steps.
      guidance_scale: 1 uses the conditioning only, 0 the unconditional embeddings only.
      seed: of the noise.
      height: of the image in pixels. Default: as in the training of the U-Net.
      width: of the image in pixels. Default: as in the training of the U-Net.
    """

    sampler: str = Sampler.PNDM.value
    steps: Annotated[int, Between(1, 1000)] = 50
    guidance_scale: Annotated[float, Between(0.0, 1000.0)] = 7.5
    seed: Seed = 0
    height: Annotated[int, Between(1, 8192)] | None = None
    width: Annotated[int, Between(1, 8192)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [sampler.value for sampler in Sampler]
        if self.sampler not in known:
            raise UserError(f"sampler must be one of {', '.join(map(repr, known))}, not {self.sampler!r}.")
