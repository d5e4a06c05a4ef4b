"""Items of a stream on any number of processes: each once, also after a resume with another number."""

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_jax.data.loader import divided
from emu_jax.data.loader.divided import DividedBatches
from emu_jax.errors import UserError

BATCH = 12
COUNTS = st.sampled_from([1, 2, 3, 4, 6])


def readers(count: int, skipped: frozenset[int] = frozenset()) -> list[DividedBatches]:
    stream = grain.MapDataset.range(10_000).map(lambda i: None if i in skipped else {"i": np.array(i)})
    return [DividedBatches(stream, batch_size=BATCH, process_index=i, process_count=count) for i in range(count)]


def read(processes: list[DividedBatches], batches: int) -> list[int]:
    return [int(i) for _ in range(batches) for one in processes for i in next(one)["i"]]


def test_batches_are_the_same_on_any_number_of_processes():
    expected = read(readers(1), 5)
    assert expected == list(range(5 * BATCH))
    for count in (2, 3, 4, 6, 12):
        assert read(readers(count), 5) == expected


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(COUNTS, st.integers(0, 3)), min_size=1, max_size=4), st.frozensets(st.integers(0, 150)))
def test_every_item_is_read_once_over_changes_of_the_number_of_processes(parts, skipped):
    found, states = [], []
    for count, batches in [*parts, (1, 14)]:
        processes = readers(count, skipped)
        for one in processes:
            if states:
                one.set_states(states)
        found += read(processes, batches)
        states = [one.get_state() for one in processes]
    assert len(found) == len(set(found))
    assert not set(found) & skipped
    assert set(range(150)) - skipped <= set(found)


def test_the_same_number_resumes_with_the_next_batch():
    processes = readers(2)
    read(processes, 3)
    states, expected = [one.get_state() for one in processes], read(processes, 2)
    again = readers(2)
    for one in again:
        one.set_states(states)
    assert read(again, 2) == expected
    with pytest.raises(UserError, match="by process 0 of 2 with batches of 12, and this is process 1 of 2"):
        again[1].set_state(states[0])


def test_states_of_an_older_version():
    old = {"next_index": 24}
    (one,) = readers(1)
    one.set_states([old])
    assert read([one], 1) == list(range(24, 36))
    with pytest.raises(UserError, match=r"older version.*train\.warm_start"):
        readers(2)[0].set_states([old, old])
    assert divided.rows_per_process(8, 4) == 2
