"""One reader of the stream: reads every S-th position, packs batches, and saves its state."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import grain

from emu_jax.data.batch import Batch, empty_batch
from emu_jax.data.images import DecodeError, preprocess
from emu_jax.data.loader.packing import choose_row, fill_row
from emu_jax.data.loader.read_plan import STATE_FORMAT, ReadPlan, is_unread
from emu_jax.data.loader.rejects import Rejects, UnusableDocument
from emu_jax.data.loader.sequence_source import SequenceSource
from emu_jax.data.sequence import TokenSequence
from emu_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """A sequence that waits to be packed."""

    position: int
    sequence: TokenSequence
    set: int

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        return len(self.sequence.tokens), len(self.sequence.images)


@dataclasses.dataclass
class _Stream:
    """Number of positions read from one stream, and its waiting sequences."""

    read: int = 0
    waiting: list[_Waiting] = dataclasses.field(default_factory=list)


class Batches(grain.IterDataset):
    """The batches of one reader as a Grain dataset; Grain assigns each worker process its slice."""

    def __init__(self, source: SequenceSource, *, process_index: int, process_count: int, plans: tuple[ReadPlan, ...]):
        super().__init__()
        self._source, self._plans = source, plans
        self._process_index, self._process_count = process_index, process_count
        self._worker, self._workers = 0, 1

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Set the number of this worker; called by Grain in worker `sl.start` of `sl.step`."""
        del sequential_slice
        self._worker, self._workers = sl.start, sl.step

    def __iter__(self) -> "BatchIterator":
        return BatchIterator(
            self._source,
            plans=self._plans,
            shard=self._process_index + self._process_count * self._worker,
            shards=self._process_count * self._workers,
            worker=self._worker,
            workers=self._workers,
        )


class BatchIterator(grain.DatasetIterator):
    """Batches of one reader. Its state: the number of positions read, and the positions waiting in its pool."""

    def __init__(
        self, source: SequenceSource, *, plans: tuple[ReadPlan, ...], shard: int, shards: int, worker: int, workers: int
    ):
        super().__init__()
        self._source, self._plans = source, plans
        self._shard, self._shards = shard, shards
        self._worker, self._workers = worker, workers
        self._step = 0
        self._streams = [_Stream() for _ in plans]
        file = f"reader-{shard:05d}-of-{shards:05d}.jsonl"
        self._rejects = Rejects(source.rejects and source.rejects / file, max_fraction=source.max_rejected)

    def __next__(self) -> Batch:
        source = self._source
        for stream in self._streams_to_try():
            batch = empty_batch(source.batch, pad_id=source.tokenizer.pad_id)
            rows = 0
            while rows < source.batch.batch_size and self._fill_row(batch, rows, stream):
                rows += 1
            if rows:
                self._step += 1
                return batch
        raise StopIteration

    def _streams_to_try(self) -> Sequence[int]:
        """Return the stream of this step, followed by the others in case it has ended."""
        if not self._source.homogeneous:
            return [0]
        first = self._source.mixture.set_of_step(self._step * self._workers + self._worker)
        return [first, *(s for s in range(len(self._streams)) if s != first)]

    def _fill_row(self, batch: Batch, row: int, stream: int) -> bool:
        """Pack one row from the pool; return False if the stream has ended."""
        source, state = self._source, self._streams[stream]
        while True:
            self._refill(stream)
            if not state.waiting:
                return False
            sizes = [waiting.size for waiting in state.waiting]
            chosen = choose_row(sizes, length=source.batch.length, max_images=source.batch.max_images)
            row_items = [state.waiting[i] for i in chosen]
            removed = set(chosen)
            state.waiting = [waiting for i, waiting in enumerate(state.waiting) if i not in removed]
            usable, images = [], []
            for waiting in row_items:
                try:
                    size = source.batch.image_size
                    pixels = [preprocess(i, size, exact=False, limits=source.limits) for i in waiting.sequence.images]
                    images.append(pixels)
                    usable.append(waiting)
                except DecodeError as error:
                    found = source.document_at(stream, waiting.position)
                    assert found is not None
                    document = source.sets[found.set][found.index]
                    self._rejects.add(UnusableDocument(document.source, document.key, error))
            if usable:
                sources = [waiting.set for waiting in usable]
                fill_row(batch, row, [w.sequence for w in usable], images=images, source_ids=sources)
                return True

    def _refill(self, stream: int) -> None:
        """Read positions until the pool is full or the stream has ended."""
        state, plan, end = self._streams[stream], self._plans[stream], self._source.end(stream)
        while len(state.waiting) < self._source.pool:
            index = self._shard + self._shards * state.read
            if index >= len(plan.leftover) and plan.position(index) >= end:
                return
            state.read += 1
            self._rejects.seen += 1
            position = plan.position(index)
            try:
                found = self._source.sequence_at(stream, position)
            except UnusableDocument as unusable:
                self._rejects.add(unusable)
                continue
            if found is not None:
                state.waiting.append(_Waiting(position, *found))

    def get_state(self) -> dict[str, Any]:
        return {
            "format": STATE_FORMAT,
            "shard": self._shard,
            "shards": self._shards,
            "mixture": _fingerprint(self._source),
            "step": self._step,
            "seen": self._rejects.seen,
            "rejected": self._rejects.count,
            "streams": [{"read": s.read, "waiting": [w.position for w in s.waiting]} for s in self._streams],
            "plans": [{"base": plan.base, "leftover": list(plan.leftover)} for plan in self._plans],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        _check_state(state, self._source)
        # Grain saves the state of a worker that has returned nothing yet as if there were no workers.
        if not is_unread(state) and (state["shard"], state["shards"]) != (self._shard, self._shards):
            raise UserError(
                f"The data state belongs to reader {state['shard']} of {state['shards']}, and this is reader "
                f"{self._shard} of {self._shards}; resume with another number of processes or workers through "
                "emu_jax.data.loader.read_plan.plans_from_states."
            )
        self._step = int(state["step"])
        # Older states lack these two counts.
        self._rejects.restore(seen=int(state.get("seen", 0)), count=int(state.get("rejected", 0)))
        self._plans = tuple(ReadPlan(int(p["base"]), tuple(p["leftover"])) for p in state["plans"])
        self._streams = []
        for number, saved in enumerate(state["streams"]):
            stream = _Stream(read=int(saved["read"]))
            for position in saved["waiting"]:
                found = self._source.sequence_at(number, int(position))
                assert found is not None, "only positions that hold a document wait"
                stream.waiting.append(_Waiting(int(position), *found))
            self._streams.append(stream)


def _fingerprint(source: SequenceSource) -> list[Any]:
    """Return the options that determine the order of the stream, which must not change between save and restore."""
    mixture = source.mixture
    return [
        list(mixture.lengths),
        list(mixture.weights),
        list(mixture.epochs),
        mixture.seed,
        mixture.shuffle,
        source.homogeneous,
    ]


def _check_state(state: dict[str, Any], source: SequenceSource) -> None:
    """Raise UserError if a state belongs to other data."""
    if state.get("format") != STATE_FORMAT:
        raise UserError(f"The saved data state is not a state of this loader (format {state.get('format')!r}).")
    if list(state["mixture"]) != _fingerprint(source):
        raise UserError(
            "The saved data state belongs to another mixture (lengths, weights, epochs, seed, shuffle, homogeneous: "
            f"{state['mixture']} then, {_fingerprint(source)} now). Restore these values, or start the data from the "
            "beginning."
        )
