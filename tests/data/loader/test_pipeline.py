"""The loader returns every document once, deterministically, and resumes exactly with any number of readers."""

import collections
import dataclasses
import itertools
import json
import pickle

import numpy as np
import pytest

from emu_jax.data.batch import BatchConfig, batch_spec, fill
from emu_jax.data.loader.config import DataConfig, Mixing, SetConfig
from emu_jax.data.loader.pipeline import make_loader, make_sequence_source
from emu_jax.data.loader.read_plan import plans_from_states
from emu_jax.errors import UserError
from tests.data.conftest import NUMBER_OF

ALL = sum(NUMBER_OF.values())


@pytest.fixture
def config(sets):
    return DataConfig(
        sets=tuple(SetConfig(path=str(path), name=name, epochs=1) for name, path in sets.items()),
        batch=BatchConfig(batch_size=4, length=96, max_images=4, image_size=8),
        num_image_tokens=2,
        pool=16,
        prefetch=0,
    )


def numbers(batch):
    """Return the numbers of the documents of a batch, from the pixels of their first images."""
    found = []
    for row in range(len(batch["num_images"])):
        slots = batch["images"][row, : batch["num_images"][row], 0, 0]
        colors = (slots[:, 0].astype(int) + 256 * slots[:, 1].astype(int)).tolist()
        assert all(slot[2] == 77 for slot in slots)
        pages = {n for n in colors if 300 <= n < 600}
        assert all(colors.count(n) == 2 for n in pages), "the two images of a page are in the same row"
        found += sorted(set(colors))
    return found


def equal(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_every_document_once_with_its_image(config, small_tokenizer):
    loader = make_loader(config, tokenizer=small_tokenizer, seed=0)
    spec = batch_spec(config.batch)
    found = []
    for batch in loader:
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {k: (s.shape, s.dtype) for k, s in spec.items()}
        found += numbers(batch)
        for row in range(4):
            segments = batch["segment_ids"][row]
            runs = (batch["tokens"][row] == small_tokenizer.boi_id).sum()
            assert runs == batch["num_images"][row]
            slot = 0
            for segment in range(1, segments.max() + 1):
                here = segments == segment
                tokens = batch["tokens"][row, here]
                assert batch["positions"][row, here].tolist() == list(range(here.sum()))
                text = small_tokenizer.decode(tokens)
                pixel = batch["images"][row, slot, 0, 0].astype(int)
                number = pixel[0] + 256 * pixel[1]
                assert f"number {number} " in f"{text} "
                source = {0: 0, 1: 1, 2: 2}[int(batch["source_ids"][row, here][0])]
                assert number // 300 == source
                slot += (tokens == small_tokenizer.boi_id).sum()
        assert not batch["tokens"][batch["segment_ids"] == 0].tolist() or (
            set(batch["tokens"][batch["segment_ids"] == 0].tolist()) == {small_tokenizer.pad_id}
        )
    assert sorted(found) == [n for i, name in enumerate(NUMBER_OF) for n in range(300 * i, 300 * i + NUMBER_OF[name])]
    assert loader.source_names == ("pairs", "pages", "chats")


def test_rows_are_full(config, small_tokenizer):
    sets = tuple(dataclasses.replace(s, epochs=None) for s in config.sets)
    batch = dataclasses.replace(config.batch, max_images=6)  # these documents have 16 tokens for each image
    endless = dataclasses.replace(config, pool=64, sets=sets, batch=batch)
    loader = make_loader(endless, tokenizer=small_tokenizer, seed=0)
    fills = [fill(next(loader)) for _ in range(20)]
    assert np.mean([f.tokens for f in fills]) > 0.9
    assert np.mean([f.images for f in fills]) > 0.85


def test_runs_are_deterministic_and_seeds_differ(config, small_tokenizer):
    one, same, other = (make_loader(config, tokenizer=small_tokenizer, seed=seed) for seed in (0, 0, 1))
    assert equal(next(one), next(same))
    assert not equal(next(one), next(other))


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("mixing", list(Mixing))
def test_resume_returns_the_next_batch(config, small_tokenizer, mixing, prefetch):
    config = dataclasses.replace(
        config, mixing=mixing, prefetch=prefetch, sets=tuple(dataclasses.replace(s, epochs=None) for s in config.sets)
    )

    def loader():
        return make_loader(config, tokenizer=small_tokenizer, seed=5)

    straight = loader()
    batches = [next(straight) for _ in range(9)]
    for stop in (0, 1, 4):
        first = loader()
        for _ in range(stop):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
        first.close()
        second = loader()
        second.set_state(state)
        assert all(equal(next(second), batch) for batch in batches[stop:])
        second.close()


@pytest.mark.slow
def test_two_workers_resume_with_the_next_batch(config, small_tokenizer):
    """Also before the second worker has returned a batch, and with no workers afterwards."""
    config = dataclasses.replace(
        config, workers=2, sets=tuple(dataclasses.replace(s, epochs=None) for s in config.sets)
    )

    def loader(**changes):
        return make_loader(dataclasses.replace(config, **changes), tokenizer=small_tokenizer, seed=5)

    straight, batches, states = loader(), [], []
    for _ in range(6):
        states.append(json.loads(json.dumps(straight.get_state())))
        batches.append(next(straight))
    straight.close()
    for stop in (0, 1, 4):
        resumed = loader()
        resumed.set_state(states[stop])
        assert all(equal(next(resumed), batch) for batch in batches[stop:])
        resumed.close()
    finite = dataclasses.replace(config, sets=tuple(dataclasses.replace(s, epochs=1) for s in config.sets))
    first = make_loader(finite, tokenizer=small_tokenizer, seed=5)
    found = [n for batch in itertools.islice(first, 3) for n in numbers(batch)]
    plans = plans_from_states([first.get_state()])
    first.close()
    serial = make_loader(dataclasses.replace(finite, workers=0), tokenizer=small_tokenizer, seed=5, plans=plans)
    found += [n for batch in serial for n in numbers(batch)]
    assert len(found) == len(set(found)) == ALL


def test_homogeneous_batches_have_one_set_each(config, small_tokenizer):
    config = dataclasses.replace(
        config,
        mixing=Mixing.HOMOGENEOUS,
        sets=tuple(dataclasses.replace(s, epochs=None, weight=w) for s, w in zip(config.sets, (2, 1, 1), strict=True)),
    )
    loader = make_loader(config, tokenizer=small_tokenizer, seed=0)
    drawn = collections.Counter()
    for _ in range(40):
        batch = next(loader)
        (source,) = set(batch["source_ids"][batch["segment_ids"] > 0].tolist())
        drawn[source] += 1
    assert drawn == {0: 20, 1: 10, 2: 10}


def test_homogeneous_mixing_ends_with_the_last_set(config, small_tokenizer):
    config = dataclasses.replace(config, mixing=Mixing.HOMOGENEOUS)
    found = [n for batch in make_loader(config, tokenizer=small_tokenizer, seed=0) for n in numbers(batch)]
    assert len(found) == len(set(found)) == ALL


def test_processes_read_disjoint_documents_and_together_all(config, small_tokenizer):
    found = []
    for process in range(2):
        loader = make_loader(config, tokenizer=small_tokenizer, seed=0, process_index=process, process_count=2)
        for batch in loader:
            assert len(batch["tokens"]) == 2
            found += numbers(batch)
    assert len(found) == len(set(found)) == ALL


@pytest.mark.parametrize("mixing", list(Mixing))
@pytest.mark.parametrize("chain", [(4, 2), (4, 8), (1, 8, 4), (4, 1, 4), (2, 4, 2)])
def test_resume_with_another_number_of_processes(config, small_tokenizer, chain, mixing):
    """Each document once per epoch, through several changes; processes stop after different numbers of batches."""
    config = dataclasses.replace(
        config, mixing=mixing, pool=5, batch=dataclasses.replace(config.batch, batch_size=8, length=64)
    )
    plans, found = None, []
    for leg, count in enumerate(chain):
        states = []
        for process in range(count):
            loader = make_loader(
                config, tokenizer=small_tokenizer, seed=0, process_index=process, process_count=count, plans=plans
            )
            last = leg == len(chain) - 1
            batches = loader if last else itertools.islice(loader, 1 + process % 2)
            found += [n for batch in batches for n in numbers(batch)]
            states.append(json.loads(json.dumps(loader.get_state())))
        plans = plans_from_states(states)
    assert len(found) == len(set(found)) == ALL


def test_a_state_of_other_readers_or_other_data_is_refused(config, small_tokenizer):
    loader = make_loader(config, tokenizer=small_tokenizer, seed=0)
    next(loader)
    state = loader.get_state()
    two = make_loader(config, tokenizer=small_tokenizer, seed=0, process_index=0, process_count=2)
    with pytest.raises(UserError, match="plans_from_states"):
        two.set_state(state)
    with pytest.raises(UserError, match="another mixture"):
        make_loader(config, tokenizer=small_tokenizer, seed=1).set_state(state)
    with pytest.raises(UserError, match="data states of \\[0\\] only"):
        plans_from_states([two.get_state()])


def test_invalid_configs_raise_a_clear_error(config, small_tokenizer, tmp_path):
    def make(**changes):
        return make_loader(dataclasses.replace(config, **changes), tokenizer=small_tokenizer, seed=0, process_count=2)

    with pytest.raises(UserError, match="does not divide among 2 processes"):
        make(batch=dataclasses.replace(config.batch, batch_size=3))
    with pytest.raises(UserError, match="is not a prepared set"):
        make(sets=(SetConfig(path=str(tmp_path)),))
    with pytest.raises(UserError, match="has no split 'test'; it has train"):
        make(sets=(dataclasses.replace(config.sets[0], split="test"),))
    with pytest.raises(UserError, match="some would read nothing"):
        make(workers=20)
    with pytest.raises(UserError, match="sets is empty"):
        make(sets=())


def test_a_missing_shard_raises_a_clear_error(sets, tmp_path, config, small_tokenizer):
    shard = next(sets["pairs"].glob("*.array_record-*"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / shard.name.replace("00000-of-00001", "00000-of-00002")).write_bytes(shard.read_bytes())
    with pytest.raises(UserError, match="has 1 of 2 shards"):
        make_loader(dataclasses.replace(config, sets=(SetConfig(path=str(broken)),)), tokenizer=small_tokenizer, seed=0)


def test_too_many_documents_without_loss_stop_the_loader(config, small_tokenizer):
    from emu_jax.data.sequence_config import Regress

    config = dataclasses.replace(
        config, sets=(SetConfig(path=config.sets[2].path),), regress=Regress.NONE, num_image_tokens=90,
        max_rejected=0.0001,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"could not be used, more than the fraction 0\.0001"):
        next(make_loader(config, tokenizer=small_tokenizer, seed=0))


def test_the_sequence_source_is_picklable(config, small_tokenizer):
    source = make_sequence_source(config, tokenizer=small_tokenizer, seed=0)
    before, _ = source.sequence_at(0, 3)
    after, _ = pickle.loads(pickle.dumps(source)).sequence_at(0, 3)
    assert before.tokens.tolist() == after.tokens.tolist()


def test_tfds_reads_a_prepared_set(sets):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(sets["pairs"]).as_data_source("train")
    assert len(source) == NUMBER_OF["pairs"]
    example = source[5]
    assert example["texts"] == [b"number 5"]
    assert example["shapes"].tolist() == [[8, 8, 3]]
    assert len(example["blobs"][0]) == 8 * 8 * 3
