"""Fractions of tokens and image slots used by our packing and by common rules, next to the bound of any packing.

    python experiments/benchmarks/packing.py
    python experiments/benchmarks/packing.py --config=configs/demo.py:captions --config=configs/demo.py:pretrain

Each mixture has synthetic documents with sizes like those of real sets, or with --config the documents of a config's
sets. The pool has 256 waiting sequences; rows are counted after the pool has been replaced four times, when it holds
the sequences that are hard to pack. For the mixture of the paper, the image slots per row vary.

The bound is that of the linear program of bin packing (Gilmore and Gomory, 1961) for two budgets: the fewest rows, also
fractional ones, that hold documents of these sizes in these proportions. Tokens are rounded down to 1/128 of a row. The
documents of the counted rows are a sample of the mixture, so a measured fraction can be above the bound.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable

import numpy as np
from scipy.optimize import linprog

from emu_jax.data.batch import Fill
from emu_jax.data.loader.packing import choose_row
from emu_jax.data.loader.row_sizes import Size, simulate_fill

Sizes = list[Size]
IMAGE = 34  # tokens
ROWS = 1500
UNITS = 128  # of the token budget in the bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", default=[], help="config of a run whose sets are prepared")
    arguments = parser.parse_args()
    rules: dict[str, Callable[..., list[int]]] = {
        "one per row": lambda sizes, length, max_images: [0],
        "first fit by tokens": first_fit,
        "best fit by tokens": best_fit,
        "ours": choose_row,
    }
    streams = [of_config(config) for config in arguments.config] or synthetic()
    print(f"{'':<44}{'tokens':>8}{'images':>8}{'documents per row':>20}")
    for name, all_sizes, length, max_images in streams:
        sizes = all_sizes[:8000]
        print(f"{name}: rows of {length} tokens and {max_images} images")
        for rule, choose in rules.items():
            used, documents = simulate_fill(sizes, length=length, max_images=max_images, rows=ROWS, choose=choose)
            print(f"  {rule:<42}{used.tokens:8.1%}{used.images:8.1%}{documents:20.2f}")
        best = bound(sizes, length=length, max_images=max_images)
        print(f"  {'bound':<42}{best.tokens:8.1%}{best.images:8.1%}")


def synthetic() -> list[tuple[str, Sizes, int, int]]:
    rng = np.random.default_rng(0)

    def mixed(*parts: Sizes) -> Sizes:
        together = [size for part in parts for size in part]
        return [together[i] for i in rng.permutation(len(together))]

    def paper(max_images: int) -> Sizes:  # 128 : 128 : 64 : 16 : 16
        sets = (pairs(rng, 16_000), pages(rng, 4000), videos(rng, 1000), storyboards(rng, 1000, most=max_images))
        return mixed(*sets)

    long_pages = [(int(rng.integers(400, 1001)), int(rng.integers(1, 6))) for _ in range(4000)]
    return [
        ("pairs", pairs(rng, 20_000), 1024, 20),
        ("pages", pages(rng, 8000), 1024, 5),
        ("pairs, storyboards of 8 frames (4:1)", mixed(pairs(rng, 8000), storyboards(rng, 2000, most=8)), 1024, 17),
        ("pairs, videos (1:1)", mixed(pairs(rng, 6000), videos(rng, 6000)), 1024, 27),
        ("pairs, long pages, videos (8:2:1)", mixed(pairs(rng, 16_000), long_pages, videos(rng, 2000)), 1024, 11),
        *((f"the paper's mixture, {slots} slots", paper(slots), 1024, slots) for slots in (11, 12, 13, 14, 15, 16)),
    ]


def of_config(argument: str) -> tuple[str, Sizes, int, int]:
    """Return the sizes of 8,000 documents of a config's mixture."""
    from emu_jax.cli.config_file import read_config
    from emu_jax.data.loader.pipeline import make_sequence_source
    from emu_jax.data.tokenizer import Tokenizer
    from emu_jax.training.runs.emu import read_emu_config

    run = read_emu_config(read_config(argument, []))
    source = make_sequence_source(
        run.data, tokenizer=Tokenizer.load(run.tokenizer, instruct=run.instruct), seed=run.train.seed
    )
    found = (source.sequence_at(0, position) for position in range(8000))
    sizes = [(len(one[0].tokens), len(one[0].images)) for one in found if one is not None]
    return argument, sizes, run.data.batch.length, run.data.batch.max_images


def pairs(rng: np.random.Generator, count: int) -> Sizes:
    """Return pairs like those of LAION: captions of about 18 tokens."""
    captions = np.clip(rng.lognormal(2.75, 0.5, count), 3, 200).astype(int)
    return [(IMAGE + 2 + int(n), 1) for n in captions]


def pages(rng: np.random.Generator, count: int) -> Sizes:
    """Return pages like those of MMC4: about 400 tokens of text, one to five images."""
    images = np.minimum(5, 1 + rng.poisson(0.8, count))
    text = rng.lognormal(5.74, 0.8, count).astype(int)
    return [(min(1024, 2 + IMAGE * int(k) + int(n)), int(k)) for k, n in zip(images, text, strict=True)]


def videos(rng: np.random.Generator, count: int) -> Sizes:
    """Return clips of eight frames with a caption, like those of WebVid."""
    captions = np.clip(rng.lognormal(2.9, 0.5, count), 3, 60).astype(int)
    return [(8 * IMAGE + 2 + int(n), 8) for n in captions]


def storyboards(rng: np.random.Generator, count: int, *, most: int) -> Sizes:
    """Return sections of videos with a subtitle of about 30 tokens after each frame, of at most `most` frames."""
    sizes = []
    for _ in range(count):
        frames = min(most, max(3, int(rng.lognormal(3.69, 0.8))))
        tokens, images = 2, 0
        while images < frames and tokens + IMAGE <= 1024:
            tokens, images = min(1024, tokens + IMAGE + int(rng.poisson(30))), images + 1
        sizes.append((tokens, images))
    return sizes


def first_fit(sizes: Sizes, length: int, max_images: int) -> list[int]:
    """Choose in order of arrival while the tokens fit; a row ends when its image slots are full."""
    chosen, tokens, slots = [], 0, 0
    for i, (n, k) in enumerate(sizes):
        if tokens + n > length:
            continue
        if slots + k > max_images:
            break
        chosen.append(i)
        tokens, slots = tokens + n, slots + k
    return chosen


def best_fit(sizes: Sizes, length: int, max_images: int) -> list[int]:
    """Choose the oldest, then always the longest that fits both budgets."""
    chosen = [0]
    tokens, slots = length - sizes[0][0], max_images - sizes[0][1]
    for i in sorted(range(1, len(sizes)), key=lambda i: -sizes[i][0]):
        if sizes[i][0] <= tokens and sizes[i][1] <= slots:
            chosen.append(i)
            tokens, slots = tokens - sizes[i][0], slots - sizes[i][1]
    return chosen


def bound(sizes: Sizes, *, length: int, max_images: int) -> Fill:
    """Return the largest fractions that any packing of documents of these sizes can use."""
    unit = max(1, length // UNITS)
    counts = collections.Counter((n // unit, k) for n, k in sizes if n // unit or k)
    tokens, images = (np.array(column) for column in zip(*counts, strict=True))
    demand = np.array(list(counts.values())) / len(sizes)
    budgets = (length // unit, max_images)
    patterns = [_single(i, (tokens, images), budgets) for i in range(len(demand))]
    while True:
        columns = np.stack(patterns, axis=1)
        solved = linprog(np.ones(len(patterns)), A_ub=-columns, b_ub=-demand, method="highs")
        value, pattern = _best_pattern(-solved.ineqlin.marginals, (tokens, images), budgets)
        if value <= 1 + 1e-6:
            break
        patterns.append(pattern)
    rows = solved.fun / value  # per document; a lower bound by duality
    mean = np.mean(sizes, axis=0) / (length, max_images)
    rows = max(rows, *mean)
    return Fill(*(float(fraction / rows) for fraction in mean))


def _single(i: int, sizes: tuple[np.ndarray, np.ndarray], budgets: tuple[int, int]) -> np.ndarray:
    """Return the row that holds only documents of size i, as many as fit."""
    pattern = np.zeros(len(sizes[0]))
    pattern[i] = min(budget // size[i] for size, budget in zip(sizes, budgets, strict=True) if size[i])
    return pattern


def _best_pattern(
    prices: np.ndarray, sizes: tuple[np.ndarray, np.ndarray], budgets: tuple[int, int]
) -> tuple[float, np.ndarray]:
    """Return the most valuable row, by dynamic programming over both budgets, and its value."""
    tokens, images = sizes
    values = np.zeros((budgets[0] + 1, budgets[1] + 1))
    last = np.full(values.shape, -1)
    for n in range(1, budgets[0] + 1):
        values[n] = values[n - 1]
        for k in range(budgets[1] + 1):
            fits = np.flatnonzero((tokens <= n) & (images <= k))
            if len(fits):
                found = values[n - tokens[fits], k - images[fits]] + prices[fits]
                if found.max() > values[n, k] + 1e-12:
                    values[n, k], last[n, k] = found.max(), fits[found.argmax()]
    pattern = np.zeros(len(prices))
    n, k = budgets
    while n > 0:
        if last[n, k] < 0:
            n -= 1
        else:
            i = last[n, k]
            pattern[i] += 1
            n, k = n - tokens[i], k - images[i]
    return float(values[budgets]), pattern


if __name__ == "__main__":
    main()
