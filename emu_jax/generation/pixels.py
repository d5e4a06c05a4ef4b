"""Pictures as people take them: PIL images of the visual decoder's arrays, screened where asked, and contact sheets."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image

# Takes pictures, gives True for each that must not be shown.
SafetyCheck = Callable[[Sequence[PIL.Image.Image]], Sequence[bool]]


def to_images(images: np.ndarray) -> list[PIL.Image.Image]:
    """`[n, H, W, 3]` in [-1, 1], as the autoencoder decodes, to PIL images."""
    pixels = np.clip(np.asarray(images, np.float32) / 2 + 0.5, 0, 1)
    return [PIL.Image.fromarray(picture) for picture in (pixels * 255).round().astype(np.uint8)]


def screened(pictures: list[PIL.Image.Image], safety: SafetyCheck | None) -> list[PIL.Image.Image]:
    """The pictures, black where `safety` says so, as the release's checker leaves them."""
    if safety is None:
        return pictures
    return [
        PIL.Image.new("RGB", picture.size) if unsafe else picture
        for picture, unsafe in zip(pictures, safety(pictures), strict=True)
    ]


def contact_sheet(pictures: Sequence[PIL.Image.Image], *, gap: int = 4) -> PIL.Image.Image:
    """All pictures on one white sheet, about as wide as high, row by row."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = (max(picture.size[axis] for picture in pictures) + gap for axis in (0, 1))
    sheet = PIL.Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet
