"""Stored conditions and latents for the visual decoder, and images for the autoencoder."""

import itertools

import numpy as np
import pytest

from emu_jax.data.loader.vae_images import ImageDataConfig, make_image_loader
from emu_jax.data.loader.visual_decoder_examples import FIELDS, DecoderExamples, write_examples
from emu_jax.errors import UserError
from tests.data.conftest import NUMBER_OF, make_set

SHAPES = {"conditioning": (2, 3), "latent_mean": (4, 4, 1), "latent_log_variance": (4, 4, 1)}
COUNT = 11


def example(number: int) -> dict[str, np.ndarray]:
    return {name: np.full(shape, number + index / 10, np.float32) for index, (name, shape) in enumerate(SHAPES.items())}


@pytest.fixture
def folder(tmp_path):
    unconditional = np.arange(6, dtype=np.float32).reshape(2, 3)
    count = write_examples(
        tmp_path, map(example, range(COUNT)), unconditional=unconditional, settings={"condition": "x"}
    )
    assert count == COUNT
    return tmp_path


def test_examples_round_trip_and_once_per_pass(folder):
    stored = DecoderExamples.open(folder)
    assert stored.shapes == SHAPES
    np.testing.assert_array_equal(stored.unconditional, np.arange(6).reshape(2, 3))
    rows = list(itertools.islice(stored.loader(batch_size=1, seed=3), COUNT))
    assert sorted(int(row["latent_mean"][0, 0, 0, 0]) for row in rows) == list(range(COUNT))
    for row in rows:
        expected = example(int(row["latent_mean"][0, 0, 0, 0]))
        for name in FIELDS:
            np.testing.assert_array_equal(row[name][0], expected[name])


def test_processes_read_disjoint_examples(folder):
    stored = DecoderExamples.open(folder)
    seen = [
        {int(next_row["conditioning"][0, 0, 0]) for next_row in itertools.islice(loader, size)}
        for loader, size in (
            (stored.loader(batch_size=2, seed=0, process_index=0, process_count=2), 6),
            (stored.loader(batch_size=2, seed=0, process_index=1, process_count=2), 5),
        )
    ]
    assert seen[0].isdisjoint(seen[1])
    assert seen[0] | seen[1] == set(range(COUNT))


def test_resume_returns_the_next_batch(folder):
    loader = DecoderExamples.open(folder).loader(batch_size=4, seed=0)
    next(loader)
    state = loader.get_state()
    expected = [next(loader) for _ in range(5)]
    again = DecoderExamples.open(folder).loader(batch_size=4, seed=0)
    again.set_state(state)
    for batch in expected:
        for name, values in next(again).items():
            np.testing.assert_array_equal(values, batch[name])


def test_no_examples_raise_an_error_and_write_nothing(tmp_path):
    with pytest.raises(UserError, match="No image"):
        write_examples(tmp_path / "none", [], unconditional=np.zeros((1, 1)), settings={})
    assert list((tmp_path / "none").iterdir()) == []
    with pytest.raises(UserError, match="prepare-decoder-data"):
        DecoderExamples.open(tmp_path / "none")


def test_every_image_is_read_once_per_pass(tmp_path):
    path = make_set(tmp_path, "pairs", 0)
    loader = make_image_loader(ImageDataConfig(sets=(str(path),), image_size=8), batch_size=1, seed=0)
    numbers = [int(next(loader)["images"][0, 0, 0, 0]) for _ in range(NUMBER_OF["pairs"])]
    assert sorted(numbers) == list(range(NUMBER_OF["pairs"]))
    with pytest.raises(UserError, match="divide"):
        make_image_loader(ImageDataConfig(sets=(str(path),), image_size=8), batch_size=3, seed=0, process_count=2)
