"""What a run does otherwise on one generation of TPUs than on another."""

import dataclasses

from emu_jax.models.config import check_kept

# A part of jax's `device_kind` -> the generation's name; the first that is found.
_GENERATIONS = (
    ("v4", "v4"),
    ("v5 lite", "v5e"),
    ("v5e", "v5e"),
    ("v5", "v5p"),
    ("v6", "v6e"),
)


def generation(device_kind: str) -> str | None:
    """`"TPU v5 lite"` -> `"v5e"`; None for what is no TPU that is known here."""
    return next((name for part, name in _GENERATIONS if part in device_kind), None)


@dataclasses.dataclass(frozen=True)
class ChipConfig:
    """How much a layer keeps for the backward pass, by the memory that a chip has.

    Attributes:
      name: of the generation, such as "v5e".
      vision: takes the place of `model.vision.kept`, which holds on any other chip.
      causal_former: likewise.
      decoder: likewise.
    """

    name: str
    vision: tuple[str, ...] = ()
    causal_former: tuple[str, ...] = ()
    decoder: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kept in (self.vision, self.causal_former, self.decoder):
            check_kept(kept)
