"""Packing sequences into rows by two budgets: L tokens and I images.

Pure and deterministic: the waiting sequences are known here by their sizes alone, so that the whole state of packing
is the list of documents that wait.
"""

from collections.abc import Sequence as Items

import numpy as np

from emu_jax.data.batch import Batch
from emu_jax.data.sequence import Sequence


def choose_row(sizes: Items[tuple[int, int]], *, length: int, max_images: int) -> list[int]:
    """Which of the waiting sequences, of (tokens, images) each, make the next row; indices in the order taken.

    The first (it has waited longest, so none waits for ever), then again and again the one that lies nearest to the
    direction of what is left of both budgets: big ones first, and at the end the largest that still fits. (The
    dot-product rule for two-dimensional bins: Panigrahy et al., "Heuristics for Vector Bin Packing", 2011.)

        choose_row([(60, 1), (50, 1), (39, 0), (10, 5)], length=100, max_images=4) -> [0, 2]

    Each sequence must fit an empty row.
    """
    demand = np.asarray(sizes, np.int64).reshape(-1, 2)
    left = np.array([length, max_images], np.int64)
    if (demand > left).any():
        raise ValueError(f"a sequence is larger than a row of {length} tokens and {max_images} images")
    scale = 1.0 / np.maximum(left, 1).astype(np.float64) ** 2
    free = np.ones(len(demand), bool)
    chosen: list[int] = []
    best = 0
    while True:
        chosen.append(best)
        free[best] = False
        left -= demand[best]
        fits = free & (demand[:, 0] <= left[0]) & (demand[:, 1] <= left[1])
        if not fits.any():
            return chosen
        score = np.where(fits, demand @ (left * scale), -1.0)
        best = int(score.argmax())


def fill_row(
    batch: Batch, row: int, sequences: Items[Sequence], *, images: Items[Items[np.ndarray]], source_ids: Items[int]
) -> None:
    """Writes `sequences` one after the other into a row of an empty batch.

    Args:
      batch: as from `emu_jax.data.batch.empty_batch`; changed in place.
      images: for each sequence its images, decoded, uint8 [H W 3] of the batch's size.
      source_ids: for each sequence the number of its set.
    """
    place = slot = 0
    for segment, (sequence, pixels, source) in enumerate(zip(sequences, images, source_ids, strict=True), start=1):
        n = len(sequence.tokens)
        span = slice(place, place + n)
        batch["tokens"][row, span] = sequence.tokens
        batch["positions"][row, span] = np.arange(n)
        batch["segment_ids"][row, span] = segment
        batch["text_loss_mask"][row, span] = sequence.text_loss_mask
        batch["regression_mask"][row, span] = sequence.regression_mask
        batch["source_ids"][row, span] = source
        for image in pixels:
            batch["images"][row, slot] = image
            slot += 1
        place += n
    batch["num_images"][row] = slot
