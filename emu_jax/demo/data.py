"""The demo's first two phases: the drawn world in its real formats, and the same as the loader reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emu_jax.cli.progress import count_progress
from emu_jax.data.prepare.prepare import PrepareConfig, Store, prepare
from emu_jax.data.sources import ReadOptions
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.demo.world.corpus import corpus
from emu_jax.demo.world.world import WorldSizes, write_world

IMAGE_SIZE, NUM_FRAMES = 32, 4
VOCAB_SIZE, TOKENIZER_LINES = 512, 20_000
SEED = 0


@dataclass(frozen=True)
class _Layout:
    """How a set of the world lies on disk: the reader, the files it is given, the folder of its media."""

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


def draw_world(workdir: Path, sizes: WorldSizes) -> None:
    """Writes WORKDIR/world and, trained on its text, WORKDIR/tokenizer.model."""
    with count_progress("shards") as progress:
        write_world(
            workdir / "world",
            seed=SEED,
            sizes=sizes,
            image_size=IMAGE_SIZE,
            progress=lambda name, done, total: progress(done, total),
        )
    lines = corpus(np.random.default_rng(SEED), TOKENIZER_LINES)
    train_tokenizer(lines, workdir / "tokenizer.model", vocab_size=VOCAB_SIZE)


def prepare_sets(workdir: Path) -> None:
    """Reads every set of WORKDIR/world with the readers of the real ones and writes it to WORKDIR/data."""
    with count_progress("sets") as progress:
        for done, (name, layout) in enumerate(SETS.items()):
            progress(done, len(SETS))
            world = workdir / "world" / name
            config = PrepareConfig(
                source=layout.source,
                name=name,
                image_size=IMAGE_SIZE,
                store=Store.RAW,
                frames=NUM_FRAMES,
                options=ReadOptions(media=world / layout.media if layout.media else None),
            )
            prepare(sorted(world.glob(layout.files)), workdir / "data" / name, config=config)
        progress(len(SETS), len(SETS))
