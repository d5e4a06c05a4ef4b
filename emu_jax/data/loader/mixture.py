"""Which document stands at each place of the endless stream that the loader reads: weights, shuffling, epochs.

The order is a function of the place and the seed alone. No process holds a piece of it, so any number of processes and
workers can read it side by side, stop, and go on as another number.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import grain
import numpy as np

from emu_jax.errors import UserError

BLOCK = 1024  # places over which the weights hold exactly (to one in a thousand)
ENDLESS = 2**62
_SMALL = 2**16  # a table; above it Grain's index_shuffle, which needs none but is slow on small sets (450 us at 100)


@dataclasses.dataclass(frozen=True)
class Place:
    """A document: its set, its index there, and which pass over that set this is (from 0)."""

    set: int
    index: int
    epoch: int


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several sets in one order.

    Attributes:
      lengths: documents in each set.
      weights: share of documents drawn from each.
      epochs: passes over each set, after which it drops out; None repeats it for ever.
      seed: of the shuffling. Each epoch of each set has its own order.
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
            raise UserError(f"The weights of a mixture are positive numbers, not {list(self.weights)}.")
        if any(e is not None and e < 1 for e in self.epochs):
            raise UserError(f"epochs is a whole number from 1 on, or None to repeat, not {list(self.epochs)}.")

    def __len__(self) -> int:
        """Places there are, `ENDLESS` where a set repeats. Places of a set that has dropped out hold nothing."""
        if any(e is None for e in self.epochs):
            return ENDLESS
        counts = self._counts.tolist()
        pairs = zip(counts, self.lengths, self.epochs, strict=True)
        blocks = max(math.ceil(length * epochs / count) for count, length, epochs in pairs)  # type: ignore[operator]
        return blocks * int(self._counts.sum())

    def __getitem__(self, place: int) -> Place | None:
        """The document at a place; None where its set has dropped out."""
        size = int(self._counts.sum())
        block, within = divmod(place, size)
        which, rank = _block(self, block)
        s = int(which[within])
        return self.of_set(s, block * int(self._counts[s]) + int(rank[within]))

    def of_set(self, number: int, place: int) -> Place | None:
        """The document at a place in the stream of one set alone."""
        epoch, index = divmod(place, self.lengths[number])
        epochs = self.epochs[number]
        if epochs is not None and epoch >= epochs:
            return None
        if self.shuffle:
            index = _shuffled(index, self.lengths[number], _hash(self.seed, number, epoch))
        return Place(set=number, index=index, epoch=epoch)

    def set_length(self, number: int) -> int:
        """Places in the stream of one set alone, `ENDLESS` where it repeats."""
        epochs = self.epochs[number]
        return ENDLESS if epochs is None else self.lengths[number] * epochs

    def set_of_step(self, step: int) -> int:
        """The set that a batch is drawn from where each batch holds one set alone."""
        block, within = divmod(step, int(self._counts.sum()))
        return int(_block(self, block)[0][within])

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        """Places of each set in a block: the weights' ratio where it is one of small numbers, or else the nearest.

        The nearest is by largest remainder, with at least one place for each set.
        """
        ratios = [Fraction(w / self.weights[0]).limit_denominator(BLOCK) for w in self.weights]
        whole = math.lcm(*(r.denominator for r in ratios))
        exact = np.array([int(r * whole) for r in ratios])
        if exact.min() >= 1 and exact.sum() <= BLOCK:
            return exact // np.gcd.reduce(exact)
        share = np.asarray(self.weights) / sum(self.weights) * BLOCK
        counts = np.maximum(np.floor(share), 1).astype(np.int64)
        for s in np.argsort(np.floor(share) - share)[: max(0, BLOCK - int(counts.sum()))]:
            counts[s] += 1
        return counts // np.gcd.reduce(counts)


@functools.lru_cache(maxsize=16)
def _block(mixture: Mixture, block: int) -> tuple[np.ndarray, np.ndarray]:
    """For each place of a block: its set, and how many places of that set came before in the block."""
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
    """Place `index` of a shuffled 0 .. length - 1."""
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
    """Raises UserError where some process or worker would find nothing to read."""
    if documents < shards:
        raise UserError(
            f"{', '.join(names)}: {documents} documents for {shards} readers (processes x workers); some would read "
            "nothing. Use fewer workers, or prepare more data."
        )
