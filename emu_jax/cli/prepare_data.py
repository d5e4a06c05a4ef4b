"""Converts a data set as it was downloaded into shards that the loader reads.

    python -m emu_jax prepare-data --source=pairs --input='laion/*.tar' --output=data/laion
    python -m emu_jax prepare-data --source=mmc4 --input='mmc4/docs_shard_*_v3.jsonl' --media=mmc4/images \\
        --output=data/mmc4

Every image is decoded, checked, resized and stored; what is broken or unwanted is listed in OUTPUT/rejects.jsonl, and
what became of everything is told in OUTPUT/summary.json; OUTPUT/samples.html shows some documents. Stopped and started
again it goes on. --workers shares the work among this machine's cores, --runner among many machines (docs/data.md).
OUTPUT is a TFDS folder of ArrayRecord shards, which `tfds.builder_from_directory(OUTPUT).as_data_source("train")` reads
too. `prepare-decoder-data` makes of such sets what the visual decoder is trained on: conditions and latents.
"""

from __future__ import annotations

import glob
import shlex
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.data.prepare.beam import Runner
from emu_jax.data.prepare.prepare import PrepareConfig, Store, Summary, prepare
from emu_jax.data.sources import SOURCES, ReadOptions
from emu_jax.errors import UserError


def main(argv: list[str]) -> None:
    sources = "\n".join(f"  {name:<14}{source.files}" for name, source in SOURCES.items())
    parser = ArgumentParser(__name__, f"{__doc__}\nsources:\n{sources}")
    parser.add_argument("--source", required=True, metavar="NAME", help="layout of the input (list above)")
    parser.add_argument("--input", required=True, nargs="+", metavar="GLOB", help="files of the set; quote the pattern")
    parser.add_argument("--output", required=True, type=Path, help="folder to write; must not exist yet")
    parser.add_argument("--name", default="", help="of the set, for metrics (default: the source's)")
    parser.add_argument("--split", default="train")
    parser.add_argument("--media", type=Path, help="folder, or .tar, of the images or films that the files name")
    parser.add_argument("--image-size", type=int, default=224, help="pixels; 0 keeps the files as they are")
    parser.add_argument(
        "--store", choices=[s.value for s in Store], default="png", help="raw: quickest for tiny images"
    )
    parser.add_argument(
        "--exact", action="store_true", help="the release's pixels to the bit: decode large JPEGs whole (half as fast)"
    )
    parser.add_argument("--frames", type=int, default=8, help="frames kept of a film, evenly spread")
    parser.add_argument("--min-side", type=int, default=16, help="drop images smaller than this many pixels")
    parser.add_argument("--max-aspect", type=float, default=8.0, help="drop images longer than this times their width")
    parser.add_argument("--min-similarity", type=float, default=0.32, help="of an MMC4 image and its sentence")
    parser.add_argument("--source-split", default="train", help="split to take of coco_karpathy's one file")
    parser.add_argument("--max-rejected", type=float, default=0.01, help="share of broken documents that is borne")
    parser.add_argument("--workers", type=int, default=0, help="processes that read input files side by side")
    parser.add_argument(
        "--runner", help="let Apache Beam do it: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner"
    )
    parser.add_argument(
        "--runner-options", default="", metavar="WORDS", help="for it, as in '--region=us-east5 --project=mine'"
    )
    a = parser.parse_args(argv)

    config = PrepareConfig(
        source=a.source,
        name=a.name,
        image_size=a.image_size or None,
        exact=a.exact,
        store=Store(a.store),
        frames=a.frames,
        min_side=a.min_side,
        max_aspect=a.max_aspect,
        max_rejected=a.max_rejected,
        options=ReadOptions(media=a.media, min_similarity=a.min_similarity, split=a.source_split),
    )
    if a.workers < 0:
        raise UserError(f"--workers must be 0 or more, not {a.workers}.")
    if a.runner_options and not a.runner:
        raise UserError("--runner-options are for --runner, and there is none.")
    runner = Runner(a.runner, tuple(shlex.split(a.runner_options))) if a.runner else None
    if a.media is not None and not (a.media.is_dir() or (a.media.suffix == ".tar" and a.media.is_file())):
        raise UserError(f"--media {a.media} is neither a folder nor a .tar.")
    inputs = sorted({Path(name) for pattern in a.input for name in glob.glob(pattern, recursive=True)})
    if not inputs:
        raise UserError(f"No file matches {' '.join(a.input)}; {a.source} wants {SOURCES[a.source].files}.")
    columns = (*Progress.get_default_columns()[:3], TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, object] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)  # type: ignore[arg-type]

        summary = prepare(
            inputs, a.output, config=config, split=a.split, workers=a.workers, runner=runner, progress=progress
        )
    print(report(summary))


def report(summary: Summary) -> str:
    """What became of the input, in a few lines."""
    lines = [
        f"{summary.written} of {summary.read} documents, {summary.images} images, {summary.bytes / 1e6:.1f} MB "
        f"in {summary.directory}"
    ]
    for outcome, reasons in summary.outcomes.items():
        lines += [f"  {outcome}: {count} x {reason}" for reason, count in reasons.items()]
    return "\n".join(lines)
