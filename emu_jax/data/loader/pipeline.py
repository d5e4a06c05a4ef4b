"""The loader: reads prepared sets and returns packed batches, resumable at any batch.

Each reader (a process, or one of its worker processes) reads every S-th position of one common stream (`mixture`),
builds its sequence, keeps a pool of waiting sequences and packs rows from it. The state of a reader is the number of
positions it has read and the list of positions in its pool: a few hundred integers, no data. Because all positions
belong to the common stream, the states of all readers determine exactly which documents have been used, and
`plans_from_states` resumes with any number of readers.
"""

import dataclasses
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import grain

from emu_jax.data.batch import Batch
from emu_jax.data.loader.batch_iterator import Batches
from emu_jax.data.loader.config import DataConfig, Frames, Mixing
from emu_jax.data.loader.mixture import Mixture, check_shards
from emu_jax.data.loader.prepared_set import PreparedSet
from emu_jax.data.loader.read_plan import ReadPlan
from emu_jax.data.loader.sequence_source import SequenceSource
from emu_jax.data.sequence_config import SequenceConfig
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import UserError


class Loader(grain.DatasetIterator):
    """An iterator of batches (dicts of numpy arrays, see `emu_jax.data.batch`) with `get_state` and `set_state`.

    The state is JSON. `set_state` requires a state of the same process, with the same numbers of processes and workers,
    and resumes with the next batch, bit for bit. For other numbers see `plans_from_states`. `close` ends the workers.

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
                "to resume with other numbers, pass plans_from_states(all states) to make_loader.".format(
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
    plans: tuple[ReadPlan, ...] | None = None,
) -> Loader:
    """Return the batches of one process: `config.batch.batch_size / process_count` rows each.

    Args:
      seed: of the document order and of all random choices.
      plans: positions to start from, by `plans_from_states`; the default is the start of the stream.

    Raises:
      UserError: a set is missing or empty, there are more readers than documents, or the batch does not divide among
        the processes.
    """
    source = make_sequence_source(config, tokenizer=tokenizer, seed=seed, process_count=process_count)
    names = tuple(c.name or c.path for c in config.sets)
    for i, data in enumerate(source.sets):
        check_shards(len(data), shards=process_count * max(config.workers, 1), names=names[i : i + 1])
    dataset: grain.IterDataset = Batches(
        source,
        process_index=process_index,
        process_count=process_count,
        plans=plans or (ReadPlan(),) * source.streams,
    )
    if config.workers:
        _mark_flags_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=config.workers, per_worker_buffer_size=max(config.prefetch, 1)
        )
        dataset = dataset.mp_prefetch(options, worker_init_fn=_exit_with_parent)
    elif config.prefetch:
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=config.prefetch)
    process = (process_index, process_count)
    return Loader(iter(dataset), source_names=names, process=process, workers=config.workers)


def make_sequence_source(
    config: DataConfig, *, tokenizer: Tokenizer, seed: int, process_count: int = 1
) -> SequenceSource:
    """Open and check the sets of `config`."""
    batch = config.batch
    if batch.batch_size % process_count:
        raise UserError(f"batch_size {batch.batch_size} does not divide among {process_count} processes.")
    if not config.sets:
        raise UserError("data.sets is empty; name at least one prepared set.")
    for of_set in config.sets:
        for name, most in (("max_images", batch.max_images), ("max_length", batch.length)):
            if (getattr(of_set, name) or 0) > most:
                raise UserError(f"{name} of the set {of_set.path} is more than the {most} of a row.")
    max_images = config.max_images_per_document or batch.max_images
    if max_images > batch.max_images:
        raise UserError(
            f"max_images_per_document {max_images} is more than the {batch.max_images} image slots of a row."
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"The seed of the data must be a number from 0 to {2**32 - 1}, not {seed}.")
    sequences = tuple(
        SequenceConfig(
            length=of_set.max_length or batch.length,
            max_images=of_set.max_images or max_images,
            num_image_tokens=config.num_image_tokens,
            frames=config.frames,
            image_first=config.image_first,
            page_image_first=of_set.page_image_first,
            predict_boi=config.predict_boi,
            regress=config.regress,
            system_message=config.system_message,
            answers=config.answers,
        )
        for of_set in config.sets
    )
    sets = tuple(PreparedSet(of_set.path, split=of_set.split) for of_set in config.sets)
    return SequenceSource(
        sets=sets,
        sequences=sequences,
        mixture=Mixture(
            lengths=tuple(len(data) for data in sets),
            weights=tuple(of_set.weight for of_set in config.sets),
            epochs=tuple(of_set.epochs for of_set in config.sets),
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
        limits=config.limits,
    )


def _exit_with_parent(worker: int, workers: int) -> None:
    """End this worker with its parent; if the parent was killed, it would wait indefinitely to fill a queue."""
    del worker, workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _mark_flags_parsed() -> None:
    """Mark absl flags as parsed: Grain's workers read them, but outside `absl.app.run` nothing parses them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
