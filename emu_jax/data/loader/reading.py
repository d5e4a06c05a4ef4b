"""One reader of the stream: it takes every S-th place, packs batches, and knows what it has read."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from emu_jax.data import document as doc
from emu_jax.data.batch import Batch, BatchConfig, empty_batch
from emu_jax.data.document import Document
from emu_jax.data.images import DecodeError, preprocess
from emu_jax.data.loader.mixture import Mixture, Place
from emu_jax.data.loader.packing import choose_row, fill_row
from emu_jax.data.loader.prepared import PreparedSet
from emu_jax.data.loader.rejects import Rejects, Unusable
from emu_jax.data.sequence import SequenceConfig, TokenSequence, build_sequence
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.data.video import pick_frames, take_frames
from emu_jax.errors import UserError

FORMAT = "emu_reader_1"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where readers start: first the places left over from an earlier run, then every place from `base` on."""

    base: int = 0
    leftover: tuple[int, ...] = ()

    def place(self, position: int) -> int:
        """The place at a position of this plan."""
        if position < len(self.leftover):
            return self.leftover[position]
        return self.base + position - len(self.leftover)


@dataclasses.dataclass(frozen=True)
class Reading:
    """All that a reader needs besides its number; the same for every reader of a run.

    Attributes:
      homogeneous: each batch from one set; then there is one stream of places for each set, else one for all.
      random_frames: see `DataConfig.frame_choice`.
      rejects: folder in which each reader lists what it skipped.
    """

    sets: tuple[PreparedSet, ...]
    sequences: tuple[SequenceConfig, ...]
    mixture: Mixture
    tokenizer: Tokenizer
    batch: BatchConfig
    pool: int
    homogeneous: bool
    random_frames: bool
    max_rejected: float
    rejects: Path | None

    @property
    def streams(self) -> int:
        return len(self.sets) if self.homogeneous else 1

    def document_at(self, stream: int, place: int) -> Place | None:
        """What stands at a place of a stream."""
        return self.mixture.of_set(stream, place) if self.homogeneous else self.mixture[place]

    def end(self, stream: int) -> int:
        """Places of a stream."""
        return self.mixture.set_length(stream) if self.homogeneous else len(self.mixture)

    def sequence_at(self, stream: int, place: int) -> tuple[TokenSequence, int] | None:
        """The sequence at a place and the number of its set, or None where the set has dropped out.

        Raises Unusable for a document that cannot be laid out, or of which nothing would be learnt.
        """
        found = self.document_at(stream, place)
        if found is None:
            return None
        # One generator for each place, so that what is drawn does not depend on who reads it, or when.
        rng = np.random.default_rng([self.mixture.seed, stream, place])
        config = self.sequences[found.set]
        source, key = self.sets[found.set].path.name, f"record {found.index}"
        try:
            document = self.sets[found.set][found.index]
            source, key = document.source, document.key
            document = self._with_frames(document, config, rng)
            sequence = build_sequence(document, config=config, tokenizer=self.tokenizer, rng=rng)
            if not sequence.learns:
                raise DecodeError("nothing of the document counts in a loss")
        except DecodeError as error:
            raise Unusable(source, key, error) from None
        return sequence, found.set

    def _with_frames(self, document: Document, config: SequenceConfig, rng: np.random.Generator) -> Document:
        if not any(isinstance(segment, doc.Video) for segment in document.segments):
            return document
        chance = rng if self.random_frames else None
        segments: list[doc.Segment] = []
        for segment in document.segments:
            if isinstance(segment, doc.Video):
                if isinstance(segment.data, bytes):
                    taken = take_frames(segment.data, frames=config.frames, size=self.batch.image_size, rng=chance)
                    frames = tuple(doc.Image(frame) for frame in taken)
                else:
                    frames = pick_frames(segment.data, count=config.frames, rng=chance)
                segment = dataclasses.replace(segment, data=frames)
            segments.append(segment)
        return dataclasses.replace(document, segments=tuple(segments))


@dataclasses.dataclass(frozen=True)
class _Waiting:
    place: int
    sequence: TokenSequence
    set: int

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        return len(self.sequence.tokens), len(self.sequence.images)


@dataclasses.dataclass
class _Stream:
    """Position in one stream and what waits of it."""

    read: int = 0
    waiting: list[_Waiting] = dataclasses.field(default_factory=list)


class Batches(grain.IterDataset):
    """The batches of one reader, as a Grain dataset: Grain gives each worker process its slice of it."""

    def __init__(self, reading: Reading, *, process_index: int, process_count: int, plans: tuple[Plan, ...]):
        super().__init__()
        self._reading, self._plans = reading, plans
        self._process_index, self._process_count = process_index, process_count
        self._worker, self._workers = 0, 1

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Called by Grain in worker `sl.start` of `sl.step`."""
        del sequential_slice
        self._worker, self._workers = sl.start, sl.step

    def __iter__(self) -> "BatchIterator":
        return BatchIterator(
            self._reading,
            plans=self._plans,
            shard=self._process_index + self._process_count * self._worker,
            shards=self._process_count * self._workers,
            worker=self._worker,
            workers=self._workers,
        )


class BatchIterator(grain.DatasetIterator):
    """Batches of one reader. Its state: how many places it has read, and which of them wait in its pool."""

    def __init__(
        self, reading: Reading, *, plans: tuple[Plan, ...], shard: int, shards: int, worker: int, workers: int
    ):
        super().__init__()
        self._reading, self._plans = reading, plans
        self._shard, self._shards = shard, shards
        self._worker, self._workers = worker, workers
        self._step = 0
        self._streams = [_Stream() for _ in plans]
        file = f"reader-{shard:05d}-of-{shards:05d}.jsonl"
        self._rejects = Rejects(reading.rejects and reading.rejects / file, share=reading.max_rejected)

    def __next__(self) -> Batch:
        reading = self._reading
        for stream in self._streams_to_try():
            batch = empty_batch(reading.batch, pad_id=reading.tokenizer.pad_id)
            rows = 0
            while rows < reading.batch.batch_size and self._fill(batch, rows, stream):
                rows += 1
            if rows:
                self._step += 1
                return batch
        raise StopIteration

    def _streams_to_try(self) -> Sequence[int]:
        """The stream of this step, then (for when it has come to its end) the others."""
        if not self._reading.homogeneous:
            return [0]
        first = self._reading.mixture.set_of_step(self._step * self._workers + self._worker)
        return [first, *(s for s in range(len(self._streams)) if s != first)]

    def _fill(self, batch: Batch, row: int, stream: int) -> bool:
        reading, state = self._reading, self._streams[stream]
        while True:
            self._refill(stream)
            if not state.waiting:
                return False
            sizes = [waiting.size for waiting in state.waiting]
            chosen = choose_row(sizes, length=reading.batch.length, max_images=reading.batch.max_images)
            taken = [state.waiting[i] for i in chosen]
            gone = set(chosen)
            state.waiting = [waiting for i, waiting in enumerate(state.waiting) if i not in gone]
            kept, images = [], []
            for waiting in taken:
                try:
                    size = reading.batch.image_size
                    images.append([preprocess(i, size, exact=False) for i in waiting.sequence.images])
                    kept.append(waiting)
                except DecodeError as error:
                    found = reading.document_at(stream, waiting.place)
                    assert found is not None
                    document = reading.sets[found.set][found.index]
                    self._rejects.add(Unusable(document.source, document.key, error))
            if kept:
                sources = [waiting.set for waiting in kept]
                fill_row(batch, row, [w.sequence for w in kept], images=images, source_ids=sources)
                return True

    def _refill(self, stream: int) -> None:
        state, plan, end = self._streams[stream], self._plans[stream], self._reading.end(stream)
        while len(state.waiting) < self._reading.pool:
            position = self._shard + self._shards * state.read
            if position >= len(plan.leftover) and plan.place(position) >= end:
                return
            state.read += 1
            self._rejects.seen += 1
            place = plan.place(position)
            try:
                found = self._reading.sequence_at(stream, place)
            except Unusable as unusable:
                self._rejects.add(unusable)
                continue
            if found is not None:
                state.waiting.append(_Waiting(place, *found))

    def get_state(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "shard": self._shard,
            "shards": self._shards,
            "mixture": fingerprint(self._reading),
            "step": self._step,
            "seen": self._rejects.seen,
            "rejected": self._rejects.count,
            "streams": [{"read": s.read, "waiting": [w.place for w in s.waiting]} for s in self._streams],
            "plans": [{"base": plan.base, "leftover": list(plan.leftover)} for plan in self._plans],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        check_state(state, self._reading)
        # Grain saves a worker that has given nothing yet as if there were no workers.
        if not is_untouched(state) and (state["shard"], state["shards"]) != (self._shard, self._shards):
            raise UserError(
                f"The data's state is that of reader {state['shard']} of {state['shards']}, and this is "
                f"{self._shard} of {self._shards}; go on with another number of processes or workers through "
                "emu_jax.data.loader.pipeline.plans_from_states."
            )
        self._step = int(state["step"])
        # States from before these were counted lack them.
        self._rejects.restore(seen=int(state.get("seen", 0)), count=int(state.get("rejected", 0)))
        self._plans = tuple(Plan(int(p["base"]), tuple(p["leftover"])) for p in state["plans"])
        self._streams = []
        for number, saved in enumerate(state["streams"]):
            stream = _Stream(read=int(saved["read"]))
            for place in saved["waiting"]:
                found = self._reading.sequence_at(number, int(place))
                assert found is not None, "only places that held a document wait"
                stream.waiting.append(_Waiting(int(place), *found))
            self._streams.append(stream)


def is_untouched(state: dict[str, Any]) -> bool:
    """Whether a reader's state is that of one that has read nothing."""
    return not any(stream["read"] for stream in state["streams"])


def fingerprint(reading: Reading) -> list[Any]:
    """What must not change between a state's saving and its use: the order of the stream hangs on it."""
    mixture = reading.mixture
    return [
        list(mixture.lengths),
        list(mixture.weights),
        list(mixture.epochs),
        mixture.seed,
        mixture.shuffle,
        reading.homogeneous,
    ]


def check_state(state: dict[str, Any], reading: Reading) -> None:
    """Raises UserError where a reader's state belongs to other data."""
    if state.get("format") != FORMAT:
        raise UserError(f"The saved data state is not one of this loader (format {state.get('format')!r}).")
    if list(state["mixture"]) != fingerprint(reading):
        raise UserError(
            "The saved data state belongs to another mixture (lengths, weights, epochs, seed, shuffle, homogeneous: "
            f"{state['mixture']} then, {fingerprint(reading)} now). Restore them, or start the data anew."
        )
