"""The data of the demo: the synthetic world in the formats of the real sets, and the commands that prepare it."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.demo.world.corpus import corpus
from emu_jax.demo.world.world import WorldSizes, write_world

IMAGE_SIZE, NUM_FRAMES = 32, 4
VOCAB_SIZE, TOKENIZER_LINES = 512, 20_000
SEED = 0


@dataclass(frozen=True)
class _Layout:
    """The layout of a set: the source of `prepare-data`, the pattern of its files, and the folder of its media."""

    source: str
    files: str
    media: str | None = None


SETS = {
    "laion2b": _Layout("pairs", "*.tar"),
    "laion_coco": _Layout("pairs", "*.tar"),
    "mmc4": _Layout("mmc4", "docs_shard_*.jsonl", "images"),
    "webvid": _Layout("webvid", "*.csv", "videos"),
    "storyboards": _Layout("storyboard", "*.tar"),
    "in_context": _Layout("storyboard", "*.tar"),
    "llava": _Layout("llava", "*.json", "images"),
    "videochat": _Layout("videochat", "*.json", "videos"),
}


def write_data(workdir: Path, sizes: WorldSizes, *, progress: Callable[[int, int], None]) -> None:
    """Write WORKDIR/world, and WORKDIR/tokenizer.model, which is trained on the text of the world.

    `progress(shards done, shards in total)` is called after every shard.
    """
    write_world(
        workdir / "world",
        seed=SEED,
        sizes=sizes,
        image_size=IMAGE_SIZE,
        progress=lambda name, done, total: progress(done, total),
    )
    lines = corpus(np.random.default_rng(SEED), TOKENIZER_LINES)
    train_tokenizer(lines, workdir / "tokenizer.model", vocab_size=VOCAB_SIZE)


def prepare_commands(workdir: Path) -> Iterator[list[str]]:
    """Yield for each set of WORKDIR/world the command that prepares it to WORKDIR/data."""
    for name, layout in SETS.items():
        folder = workdir / "world" / name
        yield [
            "prepare-data",
            f"--source={layout.source}",
            f"--name={name}",
            f"--input={glob.escape(str(folder))}/{layout.files}",
            *([f"--media={folder / layout.media}"] if layout.media else []),
            f"--output={workdir / 'data' / name}",
            f"--image-size={IMAGE_SIZE}",
            "--store=raw",
            f"--frames={NUM_FRAMES}",
        ]
