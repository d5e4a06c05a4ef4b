"""Few shapes instead of many: sizes are rounded up to a bucket, and one compiled program serves all that fall in it."""

import bisect

_STEPS = (1.0, 1.5)  # two buckets for each doubling: at most a third of a row is padding


def bucket(size: int, *, smallest: int = 16, largest: int | None = None) -> int:
    """The bucket of `size`: `smallest`, 1.5 x that, 2 x, 3 x, 4 x, 6 x ..., and `largest` where it comes first.

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
    """The next power of two, for rows and images: `3 -> 4`, `0 -> 0`."""
    return 1 << (count - 1).bit_length() if count > 0 else 0
