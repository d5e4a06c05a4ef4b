"""From the files of a set to ArrayRecord shards that Grain and `tfds.data_source` read.

Two steps, so that a run that was stopped goes on: each input file becomes one part (decoded, checked, resized; written
whole or not at all), then a TFDS builder writes all parts, duplicates left out, as shards with their description. The
folder bears its name only when it is complete. Apache Beam does both steps where a runner is given.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import heapq
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from emu_jax.data.loader.inspection import contact_sheet
from emu_jax.data.prepare import beam
from emu_jax.data.prepare.cleaning import PrepareConfig, Store
from emu_jax.data.prepare.folder import build_folder
from emu_jax.data.prepare.parts import (
    SAMPLES,
    Outcome,
    Part,
    Task,
    digests,
    documents,
    make_part,
    pick,
    picked,
    write_atomically,
)
from emu_jax.data.sources import SOURCES
from emu_jax.errors import UserError

__all__ = ["Outcome", "PrepareConfig", "Store", "Summary", "prepare"]

_ENOUGH_TO_JUDGE = 1000  # documents before a share of broken ones means anything


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of the input; also written to OUTPUT/summary.json.

    Attributes:
      read: documents (and what should have been one) in the input.
      written: documents in the output.
      outcomes: how many ended otherwise, by `Outcome` and reason.
      images, characters: images in the output, and characters of its text.
      bytes: of the shards.
    """

    directory: Path
    read: int
    written: int
    outcomes: dict[str, dict[str, int]]
    images: int
    characters: int
    bytes: int


Progress = Callable[[str, int, int], None]  # (what is being done, how much is done, of how much)


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
    """Converts `inputs` into the prepared set `output`; what `emu_jax.data.loader.prepared.PreparedSet` reads.

    A second call with the same arguments goes on after the last whole part; where `output` is complete already, its
    summary is given back. Rejects are listed in `output/rejects.jsonl` with their source, key and reason, and
    `output/samples.html` shows some documents as they were stored.

    Args:
      workers: processes that read input files side by side; 0 reads in this one.
      runner: Beam's, which then does the work; the records and the summary are the same.

    Raises:
      UserError: no input, not of this layout, more than `config.max_rejected` of it broken, nothing left, or `output`
        was made from other input or with other settings.
    """
    if not inputs:
        raise UserError(f"No input files; {config.source} wants {SOURCES[config.source].files}.")
    settings = _settings(inputs, config, split)
    if output.exists():
        return _finished(output, settings)
    partial = output.with_name(f".{output.name}.partial")
    _claim(partial, settings)
    stems = (partial / f"part-{number:05d}" for number in range(len(inputs)))
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
                    _check_rejects(parts, config, last=len(parts) == len(tasks))
                except UserError:
                    executor.shutdown(cancel_futures=True)
                    raise
    return _write_set(parts, partial, output, split=split, settings=settings, runner=runner, progress=progress)


def _names(inputs: Sequence[Path]) -> list[str]:
    """What keys call the files: their names, or as much of their paths as tells them apart."""
    if len({path.name for path in inputs}) == len(inputs):
        return [path.name for path in inputs]
    common = os.path.commonpath([path.absolute() for path in inputs])
    return [os.path.relpath(path.absolute(), common) for path in inputs]


def _executor(workers: int) -> concurrent.futures.Executor:
    if workers == 0:
        return SerialExecutor()
    # Forked children would hang in the threads that JAX and Grain have started.
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


class SerialExecutor(concurrent.futures.Executor):
    """Runs each call when its result is asked for, in this process."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return Deferred(functools.partial(fn, *args, **kwargs))


@dataclasses.dataclass(frozen=True)
class Deferred:
    result: Callable[[], Any]


def _make_parts(
    tasks: Sequence[Task], *, config: PrepareConfig, executor: concurrent.futures.Executor
) -> Iterator[Part]:
    """The parts in the order of the input, whoever makes them."""
    futures = [executor.submit(make_part, task, config=config) for task in tasks]
    for future in futures:
        yield future.result()


def _check_rejects(parts: Sequence[Part], config: PrepareConfig, *, last: bool) -> None:
    """Stops where too much is broken, once there is enough to judge by or all has been read.

    A single broken document is borne however few there are, but for a share of 0.
    """
    read, broken = sum(part.read for part in parts), sum(part.broken for part in parts)
    if not last and read < _ENOUGH_TO_JUDGE and config.max_rejected > 0:
        return
    if broken > (max(config.max_rejected * read, 1) if config.max_rejected else 0):
        guilty = [part for part in parts if part.broken]
        found = [reject for reject in guilty[-1].rejects() if reject["outcome"] == Outcome.BROKEN.value][-1]
        for part in guilty:  # what was mended in the meantime shall be read again
            part.forget()
        raise UserError(
            f"{broken} of {read} documents are broken, more than the share of {config.max_rejected} that "
            f"--max-rejected allows. The last: {found['key']}: {found['reason']}"
        )


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
    read = sum(part.read for part in parts)
    if not any(part.records for part in parts):
        rejects = next((of_part for part in reversed(parts) if (of_part := part.rejects())), [])
        last = f" The last: {rejects[-1]['key']}: {rejects[-1]['reason']}" if rejects else ""
        raise UserError(f"Nothing is left of the {read} documents of the input.{last}")
    numbered = list(zip(parts, _firsts(parts), strict=True))

    def examples() -> Any:
        """All documents of all parts but duplicates, numbered. The builder may ask only once."""
        if runner is not None:
            return beam.examples([(part.stem, first) for part, first in numbered])
        return _examples(numbered, progress)

    built = build_folder(examples, partial / "build", split=split, runner=runner)
    total: collections.Counter[str] = collections.Counter()
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    samples: list[tuple[str, int, int]] = []
    with open(built / "rejects.jsonl", "w", encoding="utf-8") as file:
        for i, part in enumerate(parts):
            told = picked(part.stem)
            total.update(written=told.written, images=told.images, characters=told.characters)
            samples = heapq.nsmallest(SAMPLES, [*samples, *((digest, i, at) for digest, at in told.samples)])
            for reject in [*part.rejects(), *told.duplicates]:
                outcomes[reject["outcome"]][reject["reason"]] += 1
                file.write(json.dumps(reject) + "\n")
    summary = Summary(
        directory=output,
        read=read,
        outcomes={outcome: dict(reasons.most_common(20)) for outcome, reasons in outcomes.items()},
        bytes=sum(file.stat().st_size for file in built.glob("*.array_record-*")),
        **total,
    )
    shown = [document for _, i, at in samples for document in documents(parts[i].stem, [at])]
    write_atomically(built / "samples.html", contact_sheet(shown, title=output.name))
    saved = dataclasses.asdict(summary) | {"settings": settings}
    del saved["directory"]
    write_atomically(built / "summary.json", json.dumps(saved, indent=1))
    output.parent.mkdir(parents=True, exist_ok=True)
    built.replace(output)
    shutil.rmtree(partial)
    return summary


def _firsts(parts: Sequence[Part]) -> Iterator[int]:
    """For each part the number of its first record in the set, duplicates counted."""
    first = 0
    for part in parts:
        yield first
        first += part.records


def _examples(numbered: Sequence[tuple[Part, int]], progress: Progress | None) -> Iterator[tuple[int, dict[str, Any]]]:
    seen: set[bytes] = set()
    for done, (part, first) in enumerate(numbered, start=1):
        chosen = []
        for number, digest in enumerate(digests(part.stem)):
            if digest not in seen:
                seen.add(digest)
                chosen.append(number)
        yield from pick(part.stem, chosen, first=first)
        if progress:
            progress("writing", done, len(numbered))


def _settings(inputs: Sequence[Path], config: PrepareConfig, split: str) -> dict[str, Any]:
    """What a set is made from: going on with anything else would mix two sets."""
    sizes = [[str(path), path.stat().st_size] for path in inputs]
    made = dataclasses.asdict(config) | {"store": config.store.value, "split": split}
    made["options"]["media"] = str(config.options.media) if config.options.media else None
    return {"inputs": hashlib.sha256(json.dumps(sizes).encode()).hexdigest(), "files": len(inputs), **made}


def _claim(partial: Path, settings: dict[str, Any]) -> None:
    partial.mkdir(parents=True, exist_ok=True)
    notes = partial / "settings.json"
    if notes.exists() and json.loads(notes.read_text()) != settings:
        raise UserError(f"{partial} was begun from other input or with other settings; delete it and start again.")
    write_atomically(notes, json.dumps(settings))


def _finished(output: Path, settings: dict[str, Any]) -> Summary:
    notes = output / "summary.json"
    if not notes.exists():
        raise UserError(f"{output} exists and is not a prepared set; choose another output.")
    saved = json.loads(notes.read_text())
    if saved.pop("settings") != settings:
        raise UserError(f"{output} was made from other input or with other settings; delete it, or use another output.")
    return Summary(directory=output, **saved)
