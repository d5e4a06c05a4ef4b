"""Pack sequences into rows under two budgets: L tokens and I images.

Packing is a deterministic function of the sizes of the waiting sequences, so its state is the list of the waiting
documents.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from emu_jax.data.batch import Batch
from emu_jax.data.sequence import TokenSequence


def choose_row(sizes: Sequence[tuple[int, int]], *, length: int, max_images: int) -> list[int]:
    """Choose the waiting sequences, given as (tokens, images), that form the next row; return their indices in order.

    The first sequence is always chosen: it has waited longest, so none waits indefinitely. To it the best set of all
    sets of waiting sequences is added: the one with the largest sum of the used fractions of the two budgets. Among
    equally good sets, the one that uses the largest sequences is chosen, because small ones are easier to add later.
    `experiments/benchmarks/packing.py` compares this with common rules and with the bound of any packing.

        choose_row([(50, 1), (50, 0), (50, 3), (40, 3)], length=100, max_images=4) -> [0, 2]

    Raises:
      ValueError: a sequence does not fit in an empty row.
    """
    if any(tokens > length or images > max_images for tokens, images in sizes):
        raise ValueError(f"a sequence is larger than a row of {length} tokens and {max_images} images")
    tokens, images = length - sizes[0][0], max_images - sizes[0][1]  # what is left of the two budgets
    fitting = [i for i, (n, k) in enumerate(sizes) if i and n <= tokens and k <= images]
    fitting.sort(key=lambda i: -(sizes[i][0] * max_images + sizes[i][1] * length))  # the largest first
    # Dynamic programming over the number of images: bit n of reachable[k] is set if some sequences have n tokens and k
    # images in total. before[j] is `reachable` without sequence j and those after it.
    mask = (1 << (tokens + 1)) - 1
    reachable = [1] + [0] * images
    before: list[list[int]] = []
    for i in fitting:
        n, k = sizes[i]
        before.append(reachable)
        shifted = [(bits << n) & mask for bits in reachable[: images + 1 - k]]
        reachable = [*reachable[:k], *(old | new for old, new in zip(reachable[k:], shifted, strict=True))]
    most = [(bits.bit_length() - 1, k) for k, bits in enumerate(reachable) if bits]  # the most tokens for k images
    n, k = max(most, key=lambda total: total[0] * max_images + total[1] * length)
    chosen = []
    for i, reachable in zip(reversed(fitting), reversed(before), strict=True):
        if not reachable[k] >> n & 1:  # not without sequence i
            chosen.append(i)
            n, k = n - sizes[i][0], k - sizes[i][1]
    return [0, *sorted(chosen)]


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
    position = slot = segment = 0
    for sequence, pixels, source in zip(sequences, images, source_ids, strict=True):
        n = len(sequence.tokens)
        span = slice(position, position + n)
        batch["tokens"][row, span] = sequence.tokens
        for start, end in itertools.pairwise((*sequence.starts, n)):
            segment += 1
            document = slice(position + start, position + end)
            batch["positions"][row, document] = np.arange(end - start)
            batch["segment_ids"][row, document] = segment
        batch["text_loss_mask"][row, span] = sequence.text_loss_mask
        batch["regression_mask"][row, span] = sequence.regression_mask
        batch["source_ids"][row, span] = source
        for image in pixels:
            batch["images"][row, slot] = image
            slot += 1
        position += n
    batch["num_images"][row] = slot
