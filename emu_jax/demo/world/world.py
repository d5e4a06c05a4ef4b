"""`write_world`: all sets of the demo in one directory, determined by a seed and resumable."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

import numpy as np

from emu_jax.demo.world.alt_text import alt_text
from emu_jax.demo.world.grammar import caption
from emu_jax.demo.world.stories import sample_in_context, sample_storyboard
from emu_jax.demo.world.writers import (
    write_chats,
    write_clips,
    write_pages,
    write_pairs,
    write_storyboards,
    write_video_chats,
)
from emu_jax.errors import UserError
from emu_jax.io.files import file_errors, read_json, write_json


@dataclass(frozen=True)
class WorldSizes:
    """The number of documents of each set; the set is the folder of that name. 0 omits a set."""

    laion2b: int = 6_000  # image-text pairs, noisy alt text
    laion_coco: int = 12_000  # image-text pairs, clean captions
    mmc4: int = 2_000  # pages of two or three images
    webvid: int = 1_000  # clips
    storyboards: int = 2_000  # three or four frames with subtitles
    in_context: int = 3_000  # the same layout: two images, an instruction, the target image
    llava: int = 6_000  # chats about an image
    videochat: int = 500  # a question about a clip

    def scaled(self, factor: float) -> "WorldSizes":
        """Return every size times `factor`, at least 1 unless it is 0."""
        return WorldSizes(**{name: count and max(1, round(count * factor)) for name, count in asdict(self).items()})


@dataclass(frozen=True)
class WorldSummary:
    """The contents of `directory`; `written` and `found` count the shards that this call wrote or found."""

    directory: Path
    sizes: WorldSizes
    written: int = 0
    found: int = 0
    folders: dict[str, Path] = field(default_factory=dict)


Progress = Callable[[str, int, int], None]
SHARD_SIZE = 1_000

# set: (writer of a shard, name of the file whose presence marks a complete shard)
_WRITERS: dict[str, tuple[Callable, str]] = {
    "laion2b": (partial(write_pairs, describe=alt_text), "{:05d}.tar"),
    "laion_coco": (partial(write_pairs, describe=caption), "{:05d}.tar"),
    "mmc4": (write_pages, "docs_shard_{}_v3.jsonl"),
    "webvid": (write_clips, "results_10M_train_{}.csv"),
    "storyboards": (partial(write_storyboards, sample=sample_storyboard), "{:07d}.tar"),
    "in_context": (
        partial(write_storyboards, sample=lambda rng: sample_in_context(rng).as_storyboard()),
        "{:07d}.tar",
    ),
    "llava": (write_chats, "llava_instruct_{}.json"),
    "videochat": (write_video_chats, "videochat_instruct_{}.json"),
}


def _claim(directory: Path, settings: dict) -> None:
    """Mark `directory` as a world of these settings; raise UserError if it has others or other contents."""
    marker = directory / "world.json"
    if marker.exists():
        found = read_json(marker)
        if not isinstance(found, dict):
            raise UserError(f"{marker} is not the description of a world: choose an empty directory.")
        if found != settings:
            changed = ", ".join(sorted(k for k in settings | found if settings.get(k) != found.get(k)))
            raise UserError(f"{directory} holds a world written with another {changed}: choose an empty directory.")
        return
    with file_errors("read", directory):
        if directory.exists() and any(directory.iterdir()):
            raise UserError(f"{directory} is not empty and holds no synthetic world: choose an empty directory.")
    write_json(marker, settings, indent=2)


def write_world(
    directory: Path | str,
    *,
    seed: int = 0,
    sizes: WorldSizes = WorldSizes(),
    image_size: int = 32,
    progress: Progress | None = None,
) -> WorldSummary:
    """Write the training split of the synthetic world in the formats of the real sets.

    Equal seed, sizes and image size give equal bytes. Existing shards are not written again, so an interrupted call
    can be repeated. `progress(set, shards done, shards in total)` is called after every shard.

    Raises:
      UserError: `directory` holds a world with other settings, or other files, or cannot be written.
    """
    directory = Path(directory)
    _claim(directory, {"seed": seed, "image_size": image_size, "sizes": asdict(sizes)})
    shards = [
        (name, shard, min(SHARD_SIZE, count - shard * SHARD_SIZE))
        for name, count in asdict(sizes).items()
        for shard in range(-(-count // SHARD_SIZE))
    ]
    order = [item.name for item in fields(WorldSizes)]
    written = 0
    for done, (name, shard, count) in enumerate(shards, start=1):
        write, last_file = _WRITERS[name]
        if not (directory / name / last_file.format(shard)).exists():
            rng = np.random.default_rng([seed, order.index(name), shard])
            write(directory / name, rng, shard=shard, count=count, image_size=image_size)
            written += 1
        if progress:
            progress(name, done, len(shards))
    folders = {name: directory / name for name, count in asdict(sizes).items() if count}
    return WorldSummary(directory, sizes, written, len(shards) - written, folders)
