"""From the files of a set to ArrayRecord shards that Grain and `tfds.data_source` read.

Two passes, so that a run that was stopped goes on: each input file becomes one part (decoded, checked, resized; written
whole or not at all), then a TFDS builder writes all parts, duplicates dropped, as shards with their description. The
folder bears its name only when it is complete.
"""

import collections
import concurrent.futures
import dataclasses
import enum
import functools
import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from emu_jax.data.cleaning import Dropped, PrepareConfig, Store, clean
from emu_jax.data.document import Document, Text, Video
from emu_jax.data.folder import build_folder
from emu_jax.data.images import DecodeError
from emu_jax.data.inspection import contact_sheet
from emu_jax.data.records import from_record, serialise, to_example
from emu_jax.data.sources import SOURCES, Rejected
from emu_jax.errors import UserError

__all__ = ["Fate", "PrepareConfig", "Store", "Summary", "prepare"]

SAMPLES = 48  # documents on the contact sheet


class Fate(enum.Enum):
    """Why a document is not in the prepared set."""

    BROKEN = "broken"  # counts towards max_rejected
    DROPPED = "dropped"  # whole, but not wanted: too small, no text, ...
    DUPLICATE = "duplicate"


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of the input; also written to OUTPUT/summary.json.

    Attributes:
      read: documents (and what should have been one) in the input.
      written: documents in the output.
      fates: how many ended otherwise, by `Fate` and reason.
      images, characters: images in the output, and characters of its text.
      bytes: of the output.
    """

    directory: Path
    read: int
    written: int
    fates: dict[str, dict[str, int]]
    images: int
    characters: int
    bytes: int


Progress = Callable[[str, int, int], None]  # (what is being done, how much is done, of how much)


def prepare(
    inputs: Items[Path],
    output: Path,
    *,
    config: PrepareConfig,
    split: str = "train",
    workers: int = 0,
    progress: Progress | None = None,
) -> Summary:
    """Converts `inputs` into the prepared set `output`; what `emu_jax.data.prepared.PreparedSet` reads.

    A second call with the same arguments goes on after the last whole part; where `output` is complete already, its
    summary is given back. Rejects are listed in `output/rejects.jsonl` with their source, key and reason, and
    `output/samples.html` shows some documents as they were stored.

    Args:
      workers: processes that read input files side by side; 0 reads in this one.

    Raises:
      UserError: no input, not of this layout, more than `config.max_rejected` of it broken, nothing left, or `output`
        was made from other input or with other settings.
    """
    if not inputs:
        raise UserError(f"No input files; {config.source} wants {SOURCES[config.source].files}.")
    if len({path.name for path in inputs}) != len(inputs):
        keys = [f"{path.parent.name}/{path.name}" for path in inputs]
    else:
        keys = [path.name for path in inputs]
    settings = _settings(inputs, config, split)
    if output.exists():
        return _finished(output, settings)
    partial = output.with_name(f".{output.name}.partial")
    _claim(partial, settings)
    wanted = [
        (path, partial / f"part-{number:05d}", key) for number, (path, key) in enumerate(zip(inputs, keys, strict=True))
    ]
    parts: list[_Part] = []
    with _executor(workers) as executor:
        for part in _write_parts(wanted, config=config, executor=executor):
            parts.append(part)
            if progress:
                progress("reading", len(parts), len(inputs))
            try:
                _check_rejects(parts, config)
            except UserError:
                executor.shutdown(cancel_futures=True)
                raise
    return _write_set(parts, partial, output, split=split, settings=settings, progress=progress)


@dataclasses.dataclass(frozen=True)
class _Part:
    records: Path
    notes: Path
    rejects: list[dict[str, str]]
    read: int


def _executor(workers: int) -> concurrent.futures.Executor:
    if workers == 0:
        return _Here()
    # Forked children would hang in the threads that JAX and Grain have started.
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


class _Here(concurrent.futures.Executor):
    """Runs each call when its result is asked for, in this process."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return _Later(functools.partial(fn, *args, **kwargs))


@dataclasses.dataclass(frozen=True)
class _Later:
    result: Callable[[], Any]


def _write_parts(
    wanted: Items[tuple[Path, Path, str]], *, config: PrepareConfig, executor: concurrent.futures.Executor
) -> Iterator["_Part"]:
    """The parts in the order of the input, whoever makes them."""
    futures = [executor.submit(_write_part, path, stem, key=key, config=config) for path, stem, key in wanted]
    for future in futures:
        yield future.result()


def _write_part(path: Path, stem: Path, *, key: str, config: PrepareConfig) -> _Part:
    """One input file's documents, as records; found whole from an earlier run, they are not made again."""
    records, notes = stem.with_suffix(".records"), stem.with_suffix(".json")
    if notes.exists():
        saved = json.loads(notes.read_text())
        return _Part(records, notes, saved["rejects"], saved["read"])
    rejects: list[dict[str, str]] = []
    read = 0
    temporary = stem.with_suffix(".records.tmp")
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
    try:
        for found in SOURCES[config.source].read(path, config.options):
            read += 1
            if isinstance(found, Rejected):
                rejects.append(_reject(found.key, found.reason, Fate.BROKEN, config))
                continue
            try:
                writer.write(serialise(clean(found, config)))
            except DecodeError as error:
                rejects.append(_reject(found.key, str(error), Fate.BROKEN, config))
            except Dropped as reason:
                rejects.append(_reject(found.key, str(reason), Fate.DROPPED, config))
    finally:
        writer.close()
    temporary.replace(records)
    write_whole(notes, json.dumps({"input": key, "read": read, "rejects": rejects}))
    return _Part(records, notes, rejects, read)


def _reject(key: str, reason: str, fate: Fate, config: PrepareConfig) -> dict[str, str]:
    return {"source": config.name or config.source, "key": key, "fate": fate.value, "reason": reason}


def _check_rejects(parts: Items[_Part], config: PrepareConfig) -> None:
    """Stops where too much is broken, once there is enough to judge by (or all has been read)."""
    read = sum(part.read for part in parts)
    broken = [r for part in parts for r in part.rejects if r["fate"] == Fate.BROKEN.value]
    if len(broken) > max(config.max_rejected * read, 1):
        last = broken[-1]
        for part in parts:  # what was mended in the meantime shall be read again
            if any(r["fate"] == Fate.BROKEN.value for r in part.rejects):
                part.notes.unlink(missing_ok=True)
        raise UserError(
            f"{len(broken)} of {read} documents are broken, more than the share of {config.max_rejected} that "
            f"--max-rejected allows. The last: {last['key']}: {last['reason']}"
        )


def _write_set(
    parts: Items[_Part], partial: Path, output: Path, *, split: str, settings: dict, progress: Progress | None
) -> Summary:
    rejects = [reject for part in parts for reject in part.rejects]
    counts: collections.Counter[str] = collections.Counter()
    samples: list[Document] = []

    rng = np.random.default_rng(0)

    def documents() -> Iterator[tuple[int, dict[str, Any]]]:
        """All documents of all parts but duplicates, numbered. The builder may ask only once."""
        seen: set[bytes] = set()
        for number, part in enumerate(parts):
            if progress:
                progress("writing", number, len(parts))
            for document in _records(part.records):
                digest = _digest(document)
                if digest in seen:
                    duplicate = {"source": document.source, "key": document.key}
                    rejects.append({**duplicate, "fate": Fate.DUPLICATE.value, "reason": "the same as one before"})
                    continue
                seen.add(digest)
                for segment in document.segments:
                    if isinstance(segment, Text):
                        counts["characters"] += len(segment.text)
                    else:
                        counts["images"] += len(segment.data) if isinstance(segment, Video) else 1
                counts["written"] += 1
                if len(samples) < SAMPLES:
                    samples.append(document)
                elif (at := int(rng.integers(counts["written"]))) < SAMPLES:
                    samples[at] = document
                yield counts["written"], to_example(document)

    read = sum(part.read for part in parts)
    if read == len(rejects):
        last = f" The last: {rejects[-1]['key']}: {rejects[-1]['reason']}" if rejects else ""
        raise UserError(f"Nothing is left of the {read} documents of the input.{last}")
    built = build_folder(documents, partial / "build", split=split)
    fates: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for reject in rejects:
        fates[reject["fate"]][reject["reason"]] += 1
    summary = Summary(
        directory=output,
        read=read,
        written=counts["written"],
        fates={fate: dict(reasons.most_common(20)) for fate, reasons in fates.items()},
        images=counts["images"],
        characters=counts["characters"],
        bytes=sum(file.stat().st_size for file in built.iterdir()),
    )
    write_whole(built / "rejects.jsonl", "".join(json.dumps(reject) + "\n" for reject in rejects))
    write_whole(built / "samples.html", contact_sheet(samples, title=output.name))
    saved = dataclasses.asdict(summary) | {"settings": settings}
    del saved["directory"]
    write_whole(built / "summary.json", json.dumps(saved, indent=1))
    output.parent.mkdir(parents=True, exist_ok=True)
    built.replace(output)
    shutil.rmtree(partial)
    if progress:
        progress("writing", len(parts), len(parts))
    return summary


def _records(path: Path) -> Iterator[Document]:
    reader = array_record_module.ArrayRecordReader(str(path))
    try:
        for i in range(reader.num_records()):
            yield from_record(reader.read([i])[0])
    finally:
        reader.close()


def _digest(document: Document) -> bytes:
    """The same for documents with the same segments, whatever their keys."""
    digest = hashlib.blake2b(document.layout.value.encode(), digest_size=16)
    example = to_example(document)
    for name in ("kinds", "roles", "frames"):
        digest.update(np.asarray(example[name], np.int32).tobytes() + b"|")
    for blob in [*example["texts"], *example["blobs"]]:
        digest.update(len(blob).to_bytes(8, "little") + blob)
    return digest.digest()


def _settings(inputs: Items[Path], config: PrepareConfig, split: str) -> dict[str, Any]:
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
    write_whole(notes, json.dumps(settings))


def _finished(output: Path, settings: dict[str, Any]) -> Summary:
    notes = output / "summary.json"
    if not notes.exists():
        raise UserError(f"{output} exists and is not a prepared set; choose another output.")
    saved = json.loads(notes.read_text())
    if saved.pop("settings") != settings:
        raise UserError(f"{output} was made from other input or with other settings; delete it, or use another output.")
    return Summary(directory=output, **saved)


def write_whole(path: Path, text: str) -> None:
    """Writes a file under its name only when it is complete."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
