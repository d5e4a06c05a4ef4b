"""Convert a downloaded data set to shards that the loader reads.

    python -m emu_jax prepare-data --source=pairs --input='laion/{00000..00099}.tar' --output=data/laion
    python -m emu_jax prepare-data --source=llava --input=llava.json --check
    python -m emu_jax prepare-data --source=mmc4 --input='mmc4/docs_shard_*_v3.jsonl' --media=mmc4/images \\
        --output=data/mmc4

--check reads every record and its files, counts images against their marks, lists the bad records and writes nothing;
its exit code is 2 if a record is bad.

Every image is decoded, checked, resized and stored. OUTPUT/rejects.jsonl lists the documents that are broken, not
downloaded or removed by a filter, OUTPUT/summary.json counts all documents, and OUTPUT/samples.html displays some of
them. If the command was stopped, running it again resumes it. --workers uses several cores of this machine, --runner
uses several machines (docs/how-to/data.md). OUTPUT is a TFDS folder of ArrayRecord shards, which
`tfds.builder_from_directory(OUTPUT).as_data_source("train")` reads, too. `prepare-decoder-data` converts such sets to
training examples of the visual decoder: conditions and latents.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

from emu_jax.cli.arguments import ArgumentParser, LocalText
from emu_jax.data.limits import Limits
from emu_jax.data.prepare.beam import Runner
from emu_jax.data.prepare.check import check_inputs
from emu_jax.data.prepare.cleaning import PrepareConfig, Store
from emu_jax.data.prepare.job import Summary, prepare
from emu_jax.data.sources import SOURCES, ReadOptions
from emu_jax.data.sources.input_files import expand_inputs, missing_shards
from emu_jax.data.sources.source import Rejected
from emu_jax.errors import UserError


def main(argv: list[str]) -> None:
    sources = "\n".join(f"  {name:<14}{source.files}" for name, source in SOURCES.items())
    limits = "\n".join(f"  {field.name:<16}{field.default}" for field in dataclasses.fields(Limits))
    parser = ArgumentParser(__name__, f"{__doc__}\nsources:\n{sources}\n\nlimits:\n{limits}")
    parser.add_argument("--source", required=True, metavar="NAME", help="layout of the input (list above)")
    parser.add_argument(
        "--input", required=True, type=LocalText, nargs="+", metavar="FILES",
        help="files of the set: names, folders, braces such as {00000..00099}, wildcards (quote them)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder to write; must not exist yet (required without --check)")
    parser.add_argument("--check", action="store_true", help="read and check all records, and write nothing")
    parser.add_argument("--name", default="", help="name of the set in metrics (default: the source)")
    parser.add_argument("--split", default="train", help="name of the split to write")
    parser.add_argument("--media", type=Path, help="folder or .tar with the images or videos that the files name")
    parser.add_argument("--image-size", type=int, default=224, help="pixels per side; 0 stores the files unchanged")
    parser.add_argument(
        "--crop", action="store_true",
        help="for the visual decoder: resize the shorter side, crop the center, and drop images that are smaller",
    )  # fmt: skip
    parser.add_argument("--allow-upscale", action="store_true", help="with --crop: enlarge smaller images instead")
    parser.add_argument(
        "--store", choices=[s.value for s in Store], default="png", help="image encoding; raw: fastest for tiny images"
    )
    parser.add_argument(
        "--exact", action="store_true", help="resize exactly as the release: no reduced JPEG decoding (half as fast)"
    )
    parser.add_argument("--frames", type=int, default=8, help="evenly spaced frames to store per video")
    parser.add_argument("--min-side", type=int, default=16, help="drop images with a side of fewer pixels")
    parser.add_argument("--max-aspect", type=float, default=8.0, help="drop images with a larger ratio of their sides")
    parser.add_argument(
        "--min-similarity", type=float, default=0.32, help="minimum similarity of an MMC4 image and its sentence"
    )
    parser.add_argument("--source-split", default="train", help="split to read from the file of coco_karpathy")
    parser.add_argument("--max-rejected", type=float, default=0.01, help="maximum fraction of broken documents")
    parser.add_argument(
        "--limit", action="append", default=[], metavar="NAME=VALUE", help="change one of the limits listed above"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that read input files in parallel")
    parser.add_argument("--runner", help="use Apache Beam: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner")
    parser.add_argument(
        "--runner-options", default="", metavar="OPTIONS", help="for Beam, such as '--region=us-east5 --project=mine'"
    )
    a = parser.parse_args(argv)

    config = PrepareConfig(
        source=a.source,
        name=a.name,
        image_size=a.image_size or None,
        crop=a.crop,
        allow_upscale=a.allow_upscale,
        exact=a.exact,
        store=Store(a.store),
        frames=a.frames,
        min_side=a.min_side,
        max_aspect=a.max_aspect,
        max_rejected=a.max_rejected,
        options=ReadOptions(
            media=a.media, min_similarity=a.min_similarity, split=a.source_split, limits=parse_limits(a.limit)
        ),
    )
    if a.workers < 0:
        raise UserError(f"--workers must be 0 or more, not {a.workers}.")
    if a.runner_options and not a.runner:
        raise UserError("--runner-options requires --runner.")
    if a.allow_upscale and not a.crop:
        raise UserError("--allow-upscale requires --crop.")
    runner = Runner(a.runner, tuple(shlex.split(a.runner_options))) if a.runner else None
    if a.media is not None and not (a.media.is_dir() or (a.media.suffix == ".tar" and a.media.is_file())):
        raise UserError(f"--media {a.media} is neither a folder nor a .tar.")
    if a.output is None and not a.check:
        raise UserError("Name the folder to write with --output, or only check the input with --check.")
    source = SOURCES[a.source]
    try:
        inputs = expand_inputs(a.input, suffixes=source.suffixes)
    except UserError as error:
        raise UserError(f"{error} {a.source} requires {source.files}.") from None
    if gaps := missing_shards(inputs):
        listed = ", ".join(gaps[:10]) + (f" and {len(gaps) - 10} more" if len(gaps) > 10 else "")
        print(f"Note: there are gaps in the numbers of the input files: {listed}", file=sys.stderr)
    if a.check:
        check(inputs, source=a.source, options=config.options)
        return
    columns = (*Progress.get_default_columns()[:3], TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, object] = {}

        def progress(action: str, done: int, total: int) -> None:
            if action not in tasks:
                tasks[action] = bar.add_task(action, total=total)
            bar.update(tasks[action], completed=done)  # type: ignore[arg-type]

        summary = prepare(
            inputs, a.output, config=config, split=a.split, workers=a.workers, runner=runner, progress=progress
        )
    print(report(summary))


def check(inputs: Sequence[Path], *, source: str, options: ReadOptions) -> None:
    """Print every bad record and the counts.

    Raises:
      UserError: there are bad records.
    """

    def report(found: Rejected) -> None:
        detail = f" ({found.detail})" if found.detail else ""
        print(f"{found.outcome.value}: {found.key}: {found.reason}{detail}")

    result = check_inputs(inputs, source=source, options=options, report=report)
    print(f"{result.documents} good records, {result.media} images and videos, {result.text_only} records of text only")
    if result.bad:
        raise UserError(f"{result.bad} records are bad (listed above). Nothing was written.")


def parse_limits(assignments: list[str]) -> Limits:
    """Return the limits with the values of `--limit=NAME=VALUE`."""
    values: dict[str, float] = {}
    kinds = typing.get_type_hints(Limits)
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if name not in kinds:
            raise UserError(f"--limit {assignment}: there is no limit {name!r}; the limits are {', '.join(kinds)}.")
        try:
            values[name] = kinds[name](value)
        except ValueError:
            raise UserError(f"--limit {assignment}: {value!r} is not a number.") from None
    return Limits(**values)  # type: ignore[arg-type]


def report(summary: Summary) -> str:
    """Return the counts of a summary as a few lines."""
    parts = [f"{summary.written} written", *(f"{count} {outcome}" for outcome, count in summary.outcomes.items())]
    lines = [
        f"{summary.written} of {summary.read} documents, {summary.images} images, {summary.bytes / 1e6:.1f} MB "
        f"in {summary.directory}",
        f"  {summary.read} read = {' + '.join(parts)}",
    ]
    for outcome, reasons in summary.reasons.items():
        lines += [f"  {outcome}: {count} x {reason}" for reason, count in reasons.items()]
    lines += [f"  image lost: {count} x {reason}" for reason, count in summary.lost_images.items()]
    return "\n".join(lines)
