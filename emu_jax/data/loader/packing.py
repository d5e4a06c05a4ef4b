"""Pack sequences into rows under two budgets: L tokens and I images.

Packing is a deterministic function of the sizes of the waiting sequences, so its state is the list of the waiting
documents.
"""

from collections.abc import Sequence

import numpy as np

from emu_jax.data.batch import Batch
from emu_jax.data.sequence import TokenSequence

# Preference for the larger of two equally good sequences. A row is packed with each value; the fuller row is used.
_BIG_FIRST = (0.05, 0.3)
_SLACK = 1 + 1e-9  # the fractions are rounded


def choose_row(sizes: Sequence[tuple[int, int]], *, length: int, max_images: int) -> list[int]:
    """Choose the waiting sequences, given as (tokens, images), that form the next row; return their indices in order.

    The first sequence is always chosen: it has waited longest, so none waits indefinitely. Then the sequence is added
    after which the remaining fractions of the two budgets are closest to equal, so that neither budget runs out while
    much of the other is left; among similar ones, the larger. This repeats until none fits.
    `experiments/benchmarks/packing.py` compares this with first fit and best fit.

        choose_row([(50, 1), (50, 0), (50, 3), (40, 3)], length=100, max_images=4) -> [0, 2]

    Raises:
      ValueError: a sequence does not fit in an empty row.
    """
    demand = np.asarray(sizes, np.float64).reshape(-1, 2) / (length, max_images)
    tokens, images = np.ascontiguousarray(demand[:, 0]), np.ascontiguousarray(demand[:, 1])
    if tokens.max() > 1 or images.max() > 1:
        raise ValueError(f"a sequence is larger than a row of {length} tokens and {max_images} images")
    rows = [_fill(tokens, images, big_first=big_first) for big_first in _BIG_FIRST]
    return max(rows, key=lambda row: tokens[row].sum() + images[row].sum())


def _fill(tokens: np.ndarray, images: np.ndarray, *, big_first: float) -> list[int]:
    """Choose one row, given the fractions [n] of the two budgets that each sequence uses."""
    bonus = big_first * (tokens + images)
    free = np.ones(len(tokens), bool)
    tokens_left = images_left = _SLACK
    chosen: list[int] = []
    best = 0
    while True:
        chosen.append(best)
        free[best] = False
        tokens_left -= tokens[best]
        images_left -= images[best]
        tokens_after, images_after = tokens_left - tokens, images_left - images
        fits = free & (tokens_after >= 0) & (images_after >= 0)
        cost = np.where(fits, np.abs(tokens_after - images_after) - bonus, np.inf)
        best = int(cost.argmin())
        if not fits[best]:
            return chosen


def fill_row(
    batch: Batch,
    row: int,
    sequences: Sequence[TokenSequence],
    *,
    images: Sequence[Sequence[np.ndarray]],
    source_ids: Sequence[int],
) -> None:
    """Write `sequences` consecutively into a row of an empty batch.

    Args:
      batch: from `emu_jax.data.batch.empty_batch`; changed in place.
      images: for each sequence, its decoded images, uint8 [H W 3] of the batch's image size.
      source_ids: for each sequence, the number of its set.
    """
    position = slot = 0
    for segment, (sequence, pixels, source) in enumerate(zip(sequences, images, source_ids, strict=True), start=1):
        n = len(sequence.tokens)
        span = slice(position, position + n)
        batch["tokens"][row, span] = sequence.tokens
        batch["positions"][row, span] = np.arange(n)
        batch["segment_ids"][row, span] = segment
        batch["text_loss_mask"][row, span] = sequence.text_loss_mask
        batch["regression_mask"][row, span] = sequence.regression_mask
        batch["source_ids"][row, span] = source
        for image in pixels:
            batch["images"][row, slot] = image
            slot += 1
        position += n
    batch["num_images"][row] = slot
