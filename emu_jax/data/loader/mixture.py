"""The document at each position of the stream that the loader reads: weights, shuffling, epochs.

The order is a function of the position and the seed. No process holds a part of it, so any number of processes and
workers can read the stream in parallel, stop, and resume with another number.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import grain
import numpy as np

from emu_jax.errors import UserError

BLOCK = 1024  # positions over which the weights hold exactly (to one in a thousand)
ENDLESS = 2**62
_SMALL = 2**16  # up to this size a table; above it Grain's index_shuffle, which is slow on small sets (450 us at 100)


@dataclasses.dataclass(frozen=True)
class DocumentIndex:
    """A document: its set, its index in the set, and the number of the pass over that set (from 0)."""

    set: int
    index: int
    epoch: int


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several sets as one stream of documents.

    Attributes:
      lengths: documents in each set.
      weights: relative number of documents drawn from each set.
      epochs: passes over each set, after which it has no more documents; None repeats it indefinitely.
      seed: of the shuffling. Each epoch of each set has a different order.
      shuffle: False keeps the order of the sets (of one set: the order of its documents).
    """

    lengths: tuple[int, ...]
    weights: tuple[float, ...]
    epochs: tuple[int | None, ...]
    seed: int
    shuffle: bool = True

    def __post_init__(self):
        if not self.lengths:
            raise UserError("A mixture needs at least one set.")
        if min(self.lengths) < 1:
            raise UserError(f"Set number {self.lengths.index(min(self.lengths))} of the mixture is empty.")
        if not all(math.isfinite(w) and w > 0 for w in self.weights):
            raise UserError(f"The weights of a mixture must be positive numbers, not {list(self.weights)}.")
        if any(e is not None and e < 1 for e in self.epochs):
            raise UserError(f"epochs must be at least 1, or None to repeat, not {list(self.epochs)}.")

    def __len__(self) -> int:
        """Return the number of positions, `ENDLESS` if a set repeats. A set without epochs left has empty positions."""
        if any(e is None for e in self.epochs):
            return ENDLESS
        counts = self._counts.tolist()
        pairs = zip(counts, self.lengths, self.epochs, strict=True)
        blocks = max(math.ceil(length * epochs / count) for count, length, epochs in pairs)  # type: ignore[operator]
        return blocks * int(self._counts.sum())

    def __getitem__(self, position: int) -> DocumentIndex | None:
        """Return the document at a position, or None if its set has no epochs left."""
        size = int(self._counts.sum())
        block, within = divmod(position, size)
        which, rank = _block(self, block)
        s = int(which[within])
        return self.of_set(s, block * int(self._counts[s]) + int(rank[within]))

    def of_set(self, number: int, position: int) -> DocumentIndex | None:
        """Return the document at a position in the stream of a single set."""
        epoch, index = divmod(position, self.lengths[number])
        epochs = self.epochs[number]
        if epochs is not None and epoch >= epochs:
            return None
        if self.shuffle:
            index = _shuffled(index, self.lengths[number], _hash(self.seed, number, epoch))
        return DocumentIndex(set=number, index=index, epoch=epoch)

    def set_length(self, number: int) -> int:
        """Return the number of positions in the stream of a single set, `ENDLESS` if it repeats."""
        epochs = self.epochs[number]
        return ENDLESS if epochs is None else self.lengths[number] * epochs

    def set_of_step(self, step: int) -> int:
        """Return the set of a step's batch, for batches with documents of one set."""
        block, within = divmod(step, int(self._counts.sum()))
        return int(_block(self, block)[0][within])

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        """Return the number of positions of each set in a block.

        Weights in a ratio of small integers hold exactly; others are rounded by the largest-remainder method, with at
        least one position for each set.
        """
        ratios = [Fraction(w / self.weights[0]).limit_denominator(BLOCK) for w in self.weights]
        denominator = math.lcm(*(r.denominator for r in ratios))
        exact = np.array([int(r * denominator) for r in ratios])
        if exact.min() >= 1 and exact.sum() <= BLOCK:
            return exact // np.gcd.reduce(exact)
        quota = np.asarray(self.weights) / sum(self.weights) * BLOCK
        counts = np.maximum(np.floor(quota), 1).astype(np.int64)
        for s in np.argsort(np.floor(quota) - quota)[: max(0, BLOCK - int(counts.sum()))]:
            counts[s] += 1
        return counts // np.gcd.reduce(counts)


@functools.lru_cache(maxsize=16)
def _block(mixture: Mixture, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each position of a block, its set and the number of earlier positions of that set in the block."""
    counts = mixture._counts
    which = np.repeat(np.arange(len(counts)), counts)
    if mixture.shuffle or len(counts) > 1:
        which = np.random.default_rng([mixture.seed, block]).permutation(which)
    rank = np.zeros(len(which), np.int64)
    for s in range(len(counts)):
        mask = which == s
        rank[mask] = np.arange(int(mask.sum()))
    return which, rank


def _shuffled(index: int, length: int, seed: int) -> int:
    """Return element `index` of a shuffled 0 .. length - 1."""
    if length <= _SMALL:
        return int(_permutation(length, seed)[index])
    return grain.experimental.index_shuffle(index, max_index=length - 1, seed=seed, rounds=4)


@functools.lru_cache(maxsize=64)
def _permutation(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(length)


@functools.lru_cache(maxsize=1024)
def _hash(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def check_shards(documents: int, *, shards: int, names: Sequence[str]) -> None:
    """Raise UserError if some process or worker would have nothing to read."""
    if documents < shards:
        raise UserError(
            f"{', '.join(names)}: {documents} documents for {shards} readers (processes x workers); some would read "
            "nothing. Use fewer workers, or prepare more data."
        )
