"""Fractions of tokens and image slots used by our packing and by common rules, on lengths like those of real sets.

    python experiments/benchmarks/packing.py

The pool has 256 waiting sequences; 1,500 rows are measured after 1,500 in which the pool fills with sequences that are
hard to pack. `pairs`: like LAION, about 62 tokens and one image. `mixture`: eight such pairs to two pages (400 to 1,000
tokens, one to five images) and one video of eight frames.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from emu_jax.data.loader.packing import choose_row

Sizes = list[tuple[int, int]]
POOL, WARMUP, ROWS = 256, 1500, 1500


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rng = np.random.default_rng(0)
    streams = {"pairs": (pairs(rng, 60_000), 1024, 17), "mixture": (mixture(rng, 60_000), 1024, 11)}
    rules = {
        "one per row": lambda sizes, length, images: [0],
        "first-fit by tokens": first_fit,
        "best-fit by tokens": best_fit,
        "ours": lambda sizes, length, images: choose_row(sizes, length=length, max_images=images),
    }
    for name, (sizes, length, images) in streams.items():
        print(f"{name}: rows of {length} tokens and {images} images")
        for rule, choose in rules.items():
            tokens, slots = used(sizes, choose, length=length, images=images)
            print(f"  {rule:<22}{tokens:7.1%} of tokens {slots:7.1%} of image slots")


def pairs(rng: np.random.Generator, count: int) -> Sizes:
    captions = np.clip(rng.lognormal(3.1, 0.5, count), 3, 200).astype(int)
    return [(34 + 2 + int(n), 1) for n in captions]


def mixture(rng: np.random.Generator, count: int) -> Sizes:
    sizes = pairs(rng, 8 * count // 11)
    sizes += [(int(rng.integers(400, 1001)), int(rng.integers(1, 6))) for _ in range(2 * count // 11)]
    sizes += [(8 * 34 + 20, 8)] * (count // 11)
    return [sizes[i] for i in rng.permutation(len(sizes))]


def first_fit(sizes: Sizes, length: int, images: int) -> list[int]:
    """Choose in order of arrival while the tokens fit; a row ends when its image slots are full."""
    chosen, tokens, slots = [], 0, 0
    for i, (n, k) in enumerate(sizes):
        if tokens + n > length:
            continue
        if slots + k > images:
            break
        chosen.append(i)
        tokens, slots = tokens + n, slots + k
    return chosen


def best_fit(sizes: Sizes, length: int, images: int) -> list[int]:
    """Choose the oldest, then always the longest that fits both budgets."""
    chosen = [0]
    tokens, slots = length - sizes[0][0], images - sizes[0][1]
    for i in sorted(range(1, len(sizes)), key=lambda i: -sizes[i][0]):
        if sizes[i][0] <= tokens and sizes[i][1] <= slots:
            chosen.append(i)
            tokens, slots = tokens - sizes[i][0], slots - sizes[i][1]
    return chosen


def used(
    sizes: Sizes, choose: Callable[[Sizes, int, int], list[int]], *, length: int, images: int
) -> tuple[float, float]:
    stream = iter(sizes)
    pool = [next(stream) for _ in range(POOL)]
    tokens = slots = 0
    for row in range(WARMUP + ROWS):
        chosen = choose(pool, length, images)
        if row >= WARMUP:
            tokens += sum(pool[i][0] for i in chosen)
            slots += sum(pool[i][1] for i in chosen)
        removed = set(chosen)
        pool = [size for i, size in enumerate(pool) if i not in removed]
        pool += [next(stream) for _ in range(POOL - len(pool))]
    return tokens / ROWS / length, slots / ROWS / images


if __name__ == "__main__":
    main()
