"""Convert the files of a data set to ArrayRecord shards that Grain and `tfds.data_source` read.

There are two steps, so that a stopped run can resume. First, each input file becomes a part: decoded, checked, resized,
and written completely or not at all. Then a TFDS builder writes all parts as shards without duplicates. The output
folder appears under its name only when it is complete. With a runner, Apache Beam does both steps.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import heapq
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from emu_jax.data.prepare import beam
from emu_jax.data.prepare.cleaning import PrepareConfig
from emu_jax.data.prepare.contact_sheet import contact_sheet
from emu_jax.data.prepare.part_files import RECORD, Part, Reject, Task, make_part, read_digests, read_documents
from emu_jax.data.prepare.partial_folder import PartialFolder, preparation_identity
from emu_jax.data.prepare.selection import SAMPLES, read_selection, select_records
from emu_jax.data.prepare.tfds_folder import build_folder
from emu_jax.data.sources import SOURCES, Outcome
from emu_jax.errors import UserError
from emu_jax.io.files import file_errors, read_json, write_json, write_text
from emu_jax.io.lock import LOCK_FILE, folder_lock

_MIN_DOCUMENTS = 1000  # documents to read before the fraction of broken ones is checked


@dataclasses.dataclass(frozen=True)
class Summary:
    """The counts of a finished preparation; also written to OUTPUT/summary.json.

    Attributes:
      read: documents in the input, with those that could not be read.
      written: documents in the output.
      outcomes: number of other documents by `Outcome`; `read` is `written` plus all of these.
      reasons: number of these documents by outcome and reason; the 20 most frequent reasons of each outcome.
      lost_images: number of images that documents in the output lost, by reason.
      images, characters: images in the output, and characters of its text.
      bytes: size of the shards.
    """

    directory: Path
    read: int
    written: int
    outcomes: dict[str, int]
    reasons: dict[str, dict[str, int]]
    lost_images: dict[str, int]
    images: int
    characters: int
    bytes: int

    def __post_init__(self):
        if self.read != self.written + sum(self.outcomes.values()):
            raise RuntimeError(f"{self.read} documents were read, but not all are counted: {self}")


Progress = Callable[[str, int, int], None]  # (action, number of finished files, number of files)


def prepare(
    inputs: Sequence[Path],
    output: Path,
    *,
    config: PrepareConfig,
    split: str = "train",
    workers: int = 0,
    runner: beam.Runner | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Convert `inputs` to the prepared set `output`, which `emu_jax.data.loader.prepared_set.PreparedSet` reads.

    A second call with the same arguments resumes after the last complete part; if `output` is complete already, its
    summary is returned. Paths may be written differently, and `max_rejected` may differ. `output/rejects.jsonl` lists
    the rejects with source, key and reason, and `output/samples.html` displays some documents as stored.

    Args:
      workers: number of processes that read input files in parallel; 0 reads in this process.
      runner: run both steps on Apache Beam; the records and the summary are the same.

    Raises:
      UserError: another process prepares `output`; or no input, input of another layout, more than
        `config.max_rejected` of it broken, no documents left, or `output` was made from other input or with other
        settings.
    """
    if not inputs:
        raise UserError(f"No input files; {config.source} requires {SOURCES[config.source].files}.")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", split):
        raise UserError(f"A split is named by letters, digits and underscores, not {split!r}.")
    settings = preparation_identity(inputs, config, split)
    partial = PartialFolder(output.with_name(f".{output.name}.partial"))
    if output.exists():
        return _existing_summary(output, settings)
    with folder_lock(output, file=partial.path / LOCK_FILE):
        if output.exists():  # the last holder of the lock has completed it
            shutil.rmtree(partial.path)
            return _existing_summary(output, settings)
        partial.start(settings, max_rejected=config.max_rejected)
        try:
            parts = _all_parts(inputs, partial, config, workers=workers, runner=runner, progress=progress)
        except UserError:
            partial.remove_if_empty()
            raise
        with file_errors("write", output):
            return _write_set(
                parts, partial.path, output, split=split, settings=settings, runner=runner, progress=progress
            )


def _all_parts(
    inputs: Sequence[Path],
    partial: PartialFolder,
    config: PrepareConfig,
    *,
    workers: int,
    runner: beam.Runner | None,
    progress: Progress | None,
) -> list[Part]:
    """Make the parts of all inputs. Raises UserError if too many documents are broken, or none can be used."""
    stems = (partial.path / f"part-{number:05d}" for number in range(len(inputs)))
    tasks = [Task(*task) for task in zip(inputs, stems, _names(inputs), strict=True)]
    if runner is not None:
        beam.make_parts(tasks, config=config, runner=runner)
    parts: list[Part] = []
    with _executor(0 if runner else workers) as executor:
        for part in _make_parts(tasks, config=config, executor=executor):
            parts.append(part)
            if progress:
                progress("reading", len(parts), len(inputs))
            if part.broken or len(parts) == len(tasks):
                try:
                    _check_rejects(parts, config, is_last=len(parts) == len(tasks))
                except UserError:
                    executor.shutdown(cancel_futures=True)
                    partial.fail([part.stem for part in parts if part.broken], max_rejected=config.max_rejected)
                    raise
    if not any(part.records for part in parts):
        rejects = next((of_part for part in reversed(parts) if (of_part := part.rejects())), [])
        last = f" The last one: {_describe(rejects[-1])}." if rejects else ""
        raise UserError(f"None of the {sum(part.read for part in parts)} documents of the input can be used.{last}")
    return parts


def _names(inputs: Sequence[Path]) -> list[str]:
    """Return the file names used in keys, with as many parent folders as needed to make them unique."""
    if len({path.name for path in inputs}) == len(inputs):
        return [path.name for path in inputs]
    common = os.path.commonpath([path.absolute() for path in inputs])
    return [os.path.relpath(path.absolute(), common) for path in inputs]


def _executor(workers: int) -> concurrent.futures.Executor:
    if workers == 0:
        return SerialExecutor()
    # Forked children would deadlock on the threads that JAX and Grain have started.
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


class SerialExecutor(concurrent.futures.Executor):
    """Run each call in this process when its result is requested."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return Deferred(functools.partial(fn, *args, **kwargs))


@dataclasses.dataclass(frozen=True)
class Deferred:
    """A future whose `result()` runs the call."""

    result: Callable[[], Any]


def _make_parts(
    tasks: Sequence[Task], *, config: PrepareConfig, executor: concurrent.futures.Executor
) -> Iterator[Part]:
    """Yield the parts in the order of the input."""
    futures = [executor.submit(make_part, task, config=config) for task in tasks]
    for future in futures:
        yield future.result()


def _check_rejects(parts: Sequence[Part], config: PrepareConfig, *, is_last: bool) -> None:
    """Raise UserError if too many documents are broken.

    The check needs `_MIN_DOCUMENTS` documents or all of the input. A single broken document is always tolerated,
    except with `max_rejected=0`.
    """
    read, broken = sum(part.read for part in parts), sum(part.broken for part in parts)
    if not is_last and read < _MIN_DOCUMENTS and config.max_rejected > 0:
        return
    if broken > (max(config.max_rejected * read, 1) if config.max_rejected else 0):
        failing = [part for part in parts if part.broken]
        last = [reject for reject in failing[-1].rejects() if reject["outcome"] == Outcome.BROKEN.value][-1]
        raise UserError(
            f"{broken} of {read} documents are broken, more than the fraction {config.max_rejected} that "
            f"--max-rejected allows. The last one: {_describe(last)}. Repair the input and run the command again, or "
            "raise --max-rejected to continue with the parts that are finished."
        )


def _describe(reject: Reject) -> str:
    detail = f" ({reject['detail']})" if "detail" in reject else ""
    return f"{reject['key']}: {reject['reason']}{detail}"


def _write_set(
    parts: Sequence[Part],
    partial: Path,
    output: Path,
    *,
    split: str,
    settings: dict,
    runner: beam.Runner | None,
    progress: Progress | None,
) -> Summary:
    numbered = list(zip(parts, _first_numbers(parts), strict=True))

    def examples() -> Any:
        """Return the numbered documents of all parts without duplicates. The builder may call this only once."""
        if runner is not None:
            return beam.examples([(part.stem, first) for part, first in numbered])
        return _examples(numbered, progress)

    built = build_folder(examples, partial / "build", split=split, runner=runner)
    totals: collections.Counter[str] = collections.Counter()
    reasons: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    lost_images: collections.Counter[str] = collections.Counter()
    samples: list[tuple[str, int, int]] = []
    with open(built / "rejects.jsonl", "w", encoding="utf-8") as file:
        for i, part in enumerate(parts):
            selection = read_selection(part.stem)
            totals.update(written=selection.written, images=selection.images, characters=selection.characters)
            samples = heapq.nsmallest(SAMPLES, [*samples, *((digest, i, at) for digest, at in selection.samples)])
            for reject in [*part.rejects(), *selection.duplicates]:
                counter = reasons[reject["outcome"]] if reject["unit"] == RECORD else lost_images
                counter[reject["reason"]] += 1
                file.write(json.dumps(reject) + "\n")
    summary = Summary(
        directory=output,
        read=sum(part.read for part in parts),
        outcomes={outcome: counter.total() for outcome, counter in reasons.items()},
        reasons={outcome: dict(counter.most_common(20)) for outcome, counter in reasons.items()},
        lost_images=dict(lost_images.most_common(20)),
        bytes=sum(file.stat().st_size for file in built.glob("*.array_record-*")),
        **totals,
    )
    documents = [document for _, i, at in samples for document in read_documents(parts[i].stem, [at])]
    write_text(built / "samples.html", contact_sheet(documents, title=output.name))
    saved = dataclasses.asdict(summary) | {"settings": settings}
    del saved["directory"]
    write_json(built / "summary.json", saved)
    output.parent.mkdir(parents=True, exist_ok=True)
    built.replace(output)
    shutil.rmtree(partial)
    return summary


def _first_numbers(parts: Sequence[Part]) -> Iterator[int]:
    """Yield the number of each part's first record, counting all records of the parts before it."""
    first = 0
    for part in parts:
        yield first
        first += part.records


def _examples(numbered: Sequence[tuple[Part, int]], progress: Progress | None) -> Iterator[tuple[int, dict[str, Any]]]:
    seen: set[bytes] = set()
    for done, (part, first) in enumerate(numbered, start=1):
        selected = []
        for index, digest in enumerate(read_digests(part.stem)):
            if digest not in seen:
                seen.add(digest)
                selected.append(index)
        yield from select_records(part.stem, selected, first=first)
        if progress:
            progress("writing", done, len(numbered))


def _existing_summary(output: Path, settings: dict[str, Any]) -> Summary:
    path = output / "summary.json"
    if not path.exists():
        raise UserError(f"{output} exists and is not a prepared set; choose another output.")
    saved = read_json(path)
    if not isinstance(saved, dict) or saved.pop("settings", None) != settings:
        raise UserError(
            f"{output} was made from other input or with other settings; delete it, or choose another output."
        )
    return Summary(directory=output, **saved)
