"""Round sizes up to a few buckets, so that one compiled program serves all sizes of a bucket."""

import bisect

_STEPS = (1.0, 1.5)  # two buckets per doubling: at most a third of a row is padding


def bucket(size: int, *, smallest: int = 16, largest: int | None = None) -> int:
    """Return the bucket of `size`: `smallest` times 1, 1.5, 2, 3, 4, 6, ..., limited to `largest` if `size` fits.

    bucket(5) -> 16    bucket(17) -> 24    bucket(33) -> 48    bucket(60, largest=56) -> 60
    """
    sizes: list[int] = []
    doubled = smallest
    while not sizes or sizes[-1] < size:
        sizes += [int(doubled * step) for step in _STEPS]
        doubled *= 2
    found = sizes[bisect.bisect_left(sizes, size)]
    return max(size, min(found, largest)) if largest is not None else found


def power_of_two(count: int) -> int:
    """Return the next power of two, for numbers of rows and images: `3 -> 4`, `0 -> 0`."""
    return 1 << (count - 1).bit_length() if count > 0 else 0
