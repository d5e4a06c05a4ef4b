"""PIL images of the visual decoder's arrays, with optional safety screening, and contact sheets."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image

# From images to True for each unsafe one.
SafetyCheck = Callable[[Sequence[PIL.Image.Image]], Sequence[bool]]
Safety = SafetyCheck | bool | None  # a check; True: that of the model; False or None: no check


def to_images(images: np.ndarray) -> list[PIL.Image.Image]:
    """Convert arrays `[n, H, W, 3]` in [-1, 1], the autoencoder's output, to PIL images."""
    pixels = np.clip(np.asarray(images, np.float32) / 2 + 0.5, 0, 1)
    return [PIL.Image.fromarray(image) for image in (pixels * 255).round().astype(np.uint8)]


def screened(images: list[PIL.Image.Image], safety: SafetyCheck | None) -> list[PIL.Image.Image]:
    """Replace unsafe images by black ones, as in the release."""
    if safety is None:
        return images
    return [
        PIL.Image.new("RGB", image.size) if unsafe else image
        for image, unsafe in zip(images, safety(images), strict=True)
    ]


def contact_sheet(images: Sequence[PIL.Image.Image], *, gap: int = 4) -> PIL.Image.Image:
    """Return one white image with all images row by row, in about as many rows as columns."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = (max(image.size[axis] for image in images) + gap for axis in (0, 1))
    sheet = PIL.Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet
