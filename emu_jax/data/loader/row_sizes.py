"""Documents, tokens and images of a step, measured on packed batches, and the image slots and rows they require.

Packing depends only on the sizes of documents, so other shapes of a row are simulated without reading an image.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from emu_jax.data.batch import Batch, Fill
from emu_jax.data.loader.packing import choose_row

Size = tuple[int, int]  # tokens and images of a document
Choose = Callable[..., list[int]]

_GOAL = Fill(tokens=0.95, images=0.85)
_SETTLED = 4  # the pool is replaced this many times before rows are counted


def document_sizes(batch: Batch, *, image_token_id: int) -> list[Size]:
    """Return (tokens, images) of each document of a batch, row by row."""
    sizes: list[Size] = []
    is_image = batch["tokens"] == image_token_id
    starts = is_image & ~np.pad(is_image, ((0, 0), (1, 0)))[:, :-1]
    for segments, images in zip(batch["segment_ids"], starts, strict=True):
        most = int(segments.max())
        tokens = np.bincount(segments, minlength=most + 1)[1:]
        sizes += zip(tokens.tolist(), np.bincount(segments[images], minlength=most + 1)[1:].tolist(), strict=True)
    return sizes


def simulate_fill(
    sizes: Sequence[Size],
    *,
    length: int,
    max_images: int,
    pool: int = 256,
    rows: int = 400,
    choose: Choose = choose_row,
) -> tuple[Fill, float]:
    """Return the used fractions of rows packed from an endless stream of `sizes`, and the documents per row."""
    mean = np.mean(sizes, axis=0)
    per_row = max(1.0, min(length / max(mean[0], 1), max_images / max(mean[1], 1e-9)))
    settle = math.ceil(_SETTLED * pool / per_row)
    position = tokens = images = documents = 0
    waiting: list[Size] = []
    for row in range(settle + rows):
        while len(waiting) < pool:
            waiting.append(sizes[position % len(sizes)])
            position += 1
        chosen = set(choose(waiting, length=length, max_images=max_images))
        if row >= settle:
            tokens += sum(waiting[i][0] for i in chosen)
            images += sum(waiting[i][1] for i in chosen)
            documents += len(chosen)
        waiting = [size for i, size in enumerate(waiting) if i not in chosen]
    return Fill(tokens / (rows * length), images / (rows * max_images)), documents / rows


def recommend_max_images(sizes: Sequence[Size], *, length: int, pool: int = 256) -> tuple[int, Fill, float]:
    """Return the image slots per row that fill rows best, with the used fractions and the documents per row.

    The best are the slots with the largest sum of both fractions among those that use 95% of the tokens and 85% of the
    slots, or among all slots if there are none. No fewer than the images of a document are considered.
    """
    tokens, images = np.mean(sizes, axis=0)
    ratio = length * images / max(tokens, 1)  # images of a row without unused tokens
    least = max(1, max(k for _, k in sizes), math.floor(0.8 * ratio))
    found = [
        (slots, *simulate_fill(sizes, length=length, max_images=slots, pool=pool))
        for slots in range(least, max(least, math.ceil(1.25 * ratio)) + 1)
    ]

    def quality(candidate: tuple[int, Fill, float]) -> tuple[bool, float]:
        used = candidate[1]
        reached = used.tokens >= _GOAL.tokens and used.images >= _GOAL.images
        return reached, used.tokens + used.images

    return max(found, key=quality)


@dataclasses.dataclass(frozen=True)
class StepSizes:
    """Mean documents, tokens (of documents) and images of a step, and the used fractions of its rows."""

    documents: float
    tokens: float
    images: float
    used: Fill


def step_sizes(sizes: Sequence[Size], *, rows: int, batch_size: int, length: int, max_images: int) -> StepSizes:
    """Return the means of a step of `batch_size` rows, from the documents of `rows` packed rows."""
    tokens, images = (float(total) for total in np.sum(sizes, axis=0))
    steps = rows / batch_size
    used = Fill(tokens / (rows * length), images / (rows * max_images))
    return StepSizes(len(sizes) / steps, tokens / steps, images / steps, used)


def describe_step(
    sizes: Sequence[Size], *, rows: int, batch_size: int, length: int, max_images: int, samples_per_step: int, pool: int
) -> list[str]:
    """Return lines about a step: what it has, what the recipe has, and the rows and image slots that fit the data.

    Args:
      sizes: documents of `rows` packed rows.
      samples_per_step: documents per step of the recipe; 0 if the config names none.
    """
    step = step_sizes(sizes, rows=rows, batch_size=batch_size, length=length, max_images=max_images)
    lines = [
        f"A step has {step.documents:,.0f} documents, {step.tokens:,.0f} tokens and {step.images:,.0f} images "
        f"({batch_size} rows of {length} tokens and {max_images} images; {step.used.tokens:.1%} and "
        f"{step.used.images:.1%} used)."
    ]
    slots, used, per_row = recommend_max_images(sizes, length=length, pool=pool)
    lines.append(
        f"data.batch.max_images={slots} would use {used.tokens:.1%} of the tokens and {used.images:.1%} of the image "
        f"slots, with {per_row:.1f} documents per row."
    )
    if samples_per_step:
        needed = math.ceil(samples_per_step / step.documents * batch_size)
        lines.append(
            f"The recipe has {samples_per_step:,} documents per step: {step.documents / samples_per_step:.0%} of them "
            f"are reached; {needed} rows (data.batch.batch_size) reach all."
        )
    return lines
