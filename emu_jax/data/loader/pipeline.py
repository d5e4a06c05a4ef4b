"""The loader: prepared sets in, packed batches out, to be stopped and gone on with at any batch.

Each reader (a process, or one of its worker processes) takes every S-th place of one common stream (`mixture`), builds
its sequence, keeps a pool of waiting ones and packs rows from it. Its state is the number of places read and the list
of places that wait: a few hundred integers, no data. Because they are places of the common stream, the states of all
readers together tell exactly which documents are done, and `plans_from_states` goes on with any number of readers.
"""

import dataclasses
import enum
import multiprocessing
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import grain

from emu_jax.data.batch import Batch, BatchConfig
from emu_jax.data.loader.mixture import Mixture, check_shards
from emu_jax.data.loader.prepared import PreparedSet
from emu_jax.data.loader.reading import FORMAT, Batches, Plan, Reading, is_untouched
from emu_jax.data.sequence import Regress, SequenceConfig, SystemMessage
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import UserError


class Mixing(enum.Enum):
    """What one batch holds."""

    MIXED = "mixed"  # documents of all sets by weight
    HOMOGENEOUS = "homogeneous"  # one set, drawn by weight for each step, as the paper seems to have done


class Frames(enum.Enum):
    """Which frames stand for a video."""

    UNIFORM = "uniform"
    RANDOM = "random"


@dataclasses.dataclass(frozen=True)
class SetConfig:
    """One prepared set of the mixture.

    Attributes:
      path: the folder that `prepare-data` wrote.
      name: for metrics; the documents' own source name where left empty.
      weight: share of the documents drawn (with HOMOGENEOUS mixing: of the steps).
      epochs: passes over it; None repeats it for ever.
      page_image_first: see `SequenceConfig`; 0.5 for MMC4.
    """

    path: str
    name: str = ""
    weight: float = 1.0
    epochs: int | None = None
    split: str = "train"
    page_image_first: float = 1.0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how it becomes batches.

    Attributes:
      sets: the mixture.
      batch: shape of a batch over all processes.
      max_images_per_document: most images taken of one document; the paper: 5 of a page. None: as many as a row holds.
      image_first, predict_boi, regress, num_image_tokens, frames, system_message: see `SequenceConfig`.
      frame_choice: even or random frames of a video.
      pool: sequences that wait to be packed, for each reader: more pack tighter, and cost as many reads at a restart.
      workers: worker processes; 0 reads in the process itself.
      prefetch: batches made ahead, by a thread or by each worker; 0 makes each when it is asked for.
      shuffle: False keeps the documents' order, for looking at data and for evaluation.
      max_rejected: share of documents that may be unreadable before the loader stops.
      rejects: folder in which each reader lists what it skipped; `train` takes WORKDIR/rejects. Empty: nowhere.
    """

    sets: tuple[SetConfig, ...]
    batch: BatchConfig
    num_image_tokens: int = 32
    max_images_per_document: int | None = None
    image_first: float = 0.5
    predict_boi: bool = False
    regress: Regress = Regress.ALL
    system_message: SystemMessage = SystemMessage.NONE
    frames: int = 8
    frame_choice: Frames = Frames.UNIFORM
    mixing: Mixing = Mixing.MIXED
    pool: int = 256
    workers: int = 0
    prefetch: int = 2
    shuffle: bool = True
    max_rejected: float = 0.01
    rejects: str = ""


class Loader(grain.DatasetIterator):
    """An iterator of batches (dicts of numpy arrays, see `emu_jax.data.batch`) with `get_state` and `set_state`.

    The state is JSON; `set_state` wants one saved by the same process of as many, with as many workers, and gives the
    very next batch, bit for bit. For another number see `plans_from_states`. `close` ends workers.

    Attributes:
      source_names: name of each number in `source_ids`.
    """

    def __init__(
        self, batches: grain.DatasetIterator, *, source_names: tuple[str, ...], process: tuple[int, int], workers: int
    ):
        super().__init__(batches)
        self.source_names = source_names
        self._process, self._workers = process, workers

    def __next__(self) -> Batch:
        return next(self._parent)

    def get_state(self) -> dict[str, Any]:
        index, count = self._process
        reader = self._parent.get_state()
        return {"process_index": index, "process_count": count, "workers": self._workers, "reader": reader}

    def set_state(self, state: dict[str, Any]) -> None:
        saved = (state["process_index"], state["process_count"], state["workers"])
        if saved != (*self._process, self._workers):
            raise UserError(
                "The data state was saved by process {} of {} with {} workers, and this is process {} of {} with {}; "
                "to go on with another number, give plans_from_states(all states) to make_loader.".format(
                    *saved, *self._process, self._workers
                )
            )
        self._parent.set_state(state["reader"])


def make_loader(
    config: DataConfig,
    *,
    tokenizer: Tokenizer,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    plans: tuple[Plan, ...] | None = None,
) -> Loader:
    """The batches of one process: `config.batch.batch_size / process_count` rows each.

    Args:
      seed: of the documents' order and all that is drawn at random.
      plans: where to start, from `plans_from_states`; by default at the beginning.

    Raises:
      UserError: a set is missing or empty, there are more readers than documents, or the shape does not divide.
    """
    reading = make_reading(config, tokenizer=tokenizer, seed=seed, process_count=process_count)
    names = tuple(c.name or c.path for c in config.sets)
    for i, data in enumerate(reading.sets):
        check_shards(len(data), shards=process_count * max(config.workers, 1), names=names[i : i + 1])
    dataset: grain.IterDataset = Batches(
        reading,
        process_index=process_index,
        process_count=process_count,
        plans=plans or (Plan(),) * reading.streams,
    )
    if config.workers:
        _mark_flags_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=config.workers, per_worker_buffer_size=max(config.prefetch, 1)
        )
        dataset = dataset.mp_prefetch(options, worker_init_fn=_end_with_the_reader)
    elif config.prefetch:
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=config.prefetch)
    process = (process_index, process_count)
    return Loader(iter(dataset), source_names=names, process=process, workers=config.workers)


def make_reading(config: DataConfig, *, tokenizer: Tokenizer, seed: int, process_count: int = 1) -> Reading:
    """Opens the sets of `config` and checks them: what a reader reads, without a reader."""
    batch = config.batch
    if batch.batch_size % process_count:
        raise UserError(f"batch_size {batch.batch_size} does not divide among {process_count} processes.")
    if not config.sets:
        raise UserError("data.sets is empty; name at least one prepared set.")
    most = config.max_images_per_document or batch.max_images
    if most > batch.max_images:
        raise UserError(f"max_images_per_document {most} is more than the {batch.max_images} image slots of a row.")
    if not 0 <= seed < 2**32:
        raise UserError(f"The data's seed is a number from 0 to {2**32 - 1}, not {seed}.")
    sequences = tuple(
        SequenceConfig(
            length=batch.length,
            max_images=most,
            num_image_tokens=config.num_image_tokens,
            frames=config.frames,
            image_first=config.image_first,
            page_image_first=one.page_image_first,
            predict_boi=config.predict_boi,
            regress=config.regress,
            system_message=config.system_message,
        )
        for one in config.sets
    )
    sets = tuple(PreparedSet(one.path, split=one.split) for one in config.sets)
    return Reading(
        sets=sets,
        sequences=sequences,
        mixture=Mixture(
            lengths=tuple(len(data) for data in sets),
            weights=tuple(one.weight for one in config.sets),
            epochs=tuple(one.epochs for one in config.sets),
            seed=seed,
            shuffle=config.shuffle,
        ),
        tokenizer=tokenizer,
        batch=dataclasses.replace(batch, batch_size=batch.batch_size // process_count),
        pool=config.pool,
        homogeneous=config.mixing is Mixing.HOMOGENEOUS,
        random_frames=config.frame_choice is Frames.RANDOM,
        max_rejected=config.max_rejected,
        rejects=Path(config.rejects) if config.rejects else None,
    )


def plans_from_states(states: Sequence[dict[str, Any]]) -> tuple[Plan, ...]:
    """Where to go on, with any number of processes and workers, from the loader states of all processes of a run.

    What was read and waits to be packed, and places that slower readers have not come to, are read first; then the
    stream goes on. Each document is used once per epoch, as if nothing had happened; only their order is another.

    Raises:
      UserError: the state of a process is missing.
    """
    if not states:
        raise UserError("There is no data state to go on from.")
    have, count = {s["process_index"] for s in states}, states[0]["process_count"]
    if have != set(range(count)) or len(states) != count:
        raise UserError(f"The run had {count} processes, and there are data states of {sorted(have)} only.")
    found = [reader for state in states for reader in _readers(state["reader"])]
    readers = {reader["shard"]: reader for reader in found if not is_untouched(reader)}
    first = next(iter(readers.values()), found[0])
    shards = first["shards"]
    plans = []
    for number, saved in enumerate(first["plans"]):
        plan = Plan(int(saved["base"]), tuple(saved["leftover"]))
        read = [int(readers[s]["streams"][number]["read"]) if s in readers else 0 for s in range(shards)]
        waiting = [p for r in readers.values() for p in r["streams"][number]["waiting"]]
        end = max([len(plan.leftover), *(s + shards * (n - 1) + 1 for s, n in enumerate(read) if n)])
        unread = [plan.place(p) for p in range(end) if p // shards >= read[p % shards]]
        plans.append(Plan(base=plan.base + end - len(plan.leftover), leftover=tuple(sorted([*waiting, *unread]))))
    return tuple(plans)


def _readers(state: Any) -> Iterable[dict[str, Any]]:
    """The states of readers, wherever Grain has put them in its own."""
    if isinstance(state, dict):
        if state.get("format") == FORMAT:
            yield state
            return
        state = list(state.values())
    if isinstance(state, list | tuple):
        for part in state:
            yield from _readers(part)


def _end_with_the_reader(worker: int, workers: int) -> None:
    """A worker whose process was killed would wait for ever for room in a queue that nobody empties."""
    del worker, workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _mark_flags_parsed() -> None:
    """Grain's workers read absl flags; outside `absl.app.run` nobody has parsed them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
