"""Stored conditions and latents for the visual decoder, and images for the autoencoder."""

import itertools

import numpy as np
import pytest

from emu_jax.data.loader.vae_images import ImageDataConfig, make_image_loader
from emu_jax.data.loader.visual_decoder_examples import FIELDS, DecoderExamples
from emu_jax.data.prepare.decoder_shards import DecoderShards
from emu_jax.errors import UserError
from tests.data.conftest import NUMBER_OF, make_set

SHAPES = {"conditioning": (2, 3), "latent_mean": (4, 4, 1), "latent_log_variance": (4, 4, 1)}
COUNT = 11


def example(number: int) -> dict[str, np.ndarray]:
    return {name: np.full(shape, number + index / 10, np.float32) for index, (name, shape) in enumerate(SHAPES.items())}


def shards(directory, *, documents=COUNT, shard_size=4, dtype="float32", unconditional=None, settings=None):
    if unconditional is None:
        unconditional = np.arange(6, dtype=np.float32).reshape(2, 3)
    return DecoderShards(directory, documents, shard_size, dtype, unconditional, settings or {"condition": "x"})


def write(directory, **options):
    writer = shards(directory, **options)
    writer.start()
    for shard in writer.missing():
        writer.write(shard, map(example, writer.span(shard)))
    return writer.finish()


@pytest.fixture
def folder(tmp_path):
    assert write(tmp_path) == COUNT
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


def test_no_examples_raise_an_error(tmp_path):
    writer = shards(tmp_path / "none", documents=1)
    writer.start()
    writer.write(0, [None])
    with pytest.raises(UserError, match="No image"):
        writer.finish()
    with pytest.raises(UserError, match="prepare-decoder-data"):
        DecoderExamples.open(tmp_path / "none")


def test_processes_write_the_same_shards_as_one(tmp_path, folder):
    writer = shards(tmp_path / "two")
    writer.start()
    for process, complete in ((1, None), (0, COUNT)):
        for shard in writer.missing(process_index=process, process_count=2):
            writer.write(shard, map(example, writer.span(shard)))
        assert writer.finish() == complete
    one, two = DecoderExamples.open(folder), DecoderExamples.open(tmp_path / "two")
    assert len(one.shards) == 3
    assert [path.read_bytes() for path in one.shards] == [path.read_bytes() for path in two.shards]


def test_a_stopped_process_resumes_at_its_shard(tmp_path):
    writer = shards(tmp_path)
    writer.start()

    def interrupted(numbers):
        yield example(numbers[0])
        raise KeyboardInterrupt

    writer.write(0, map(example, writer.span(0)))
    with pytest.raises(KeyboardInterrupt):
        writer.write(1, interrupted(writer.span(1)))
    again = shards(tmp_path)
    again.start()
    assert again.missing() == [1, 2]
    assert again.finish() is None
    with pytest.raises(UserError, match="prepare-decoder-data"):
        DecoderExamples.open(tmp_path)
    assert write(tmp_path) == COUNT


def test_examples_of_another_model_do_not_mix(folder):
    with pytest.raises(UserError, match="another model"):
        shards(folder, unconditional=np.zeros((2, 3), np.float32)).start()
    with pytest.raises(UserError, match="other settings"):
        shards(folder, dtype="bfloat16").start()


def test_bfloat16_halves_the_bytes(tmp_path, folder):
    write(tmp_path / "half", dtype="bfloat16")
    row = next(DecoderExamples.open(tmp_path / "half").loader(batch_size=1, seed=0))
    assert row["conditioning"].dtype == np.float32
    expected = example(int(row["latent_mean"][0, 0, 0, 0]))
    for name in FIELDS:
        np.testing.assert_allclose(row[name][0], expected[name], rtol=2**-8)


def test_a_missing_shard_is_an_error(folder):
    next(folder.glob("*-00001-of-00003")).unlink()
    with pytest.raises(UserError, match="lacks 1 of 3 shards"):
        DecoderExamples.open(folder)


def test_an_image_is_not_enlarged_without_being_asked(tmp_path):
    path = make_set(tmp_path, "pairs", 0)
    with pytest.raises(UserError, match="would enlarge it"):
        next(make_image_loader(ImageDataConfig(sets=(str(path),), image_size=512), batch_size=1, seed=0))
    allowed = ImageDataConfig(sets=(str(path),), image_size=512, allow_upscale=True)
    assert next(make_image_loader(allowed, batch_size=1, seed=0))["images"].shape == (1, 512, 512, 3)


def test_every_image_is_read_once_per_pass(tmp_path):
    path = make_set(tmp_path, "pairs", 0)
    loader = make_image_loader(ImageDataConfig(sets=(str(path),), image_size=8), batch_size=1, seed=0)
    numbers = [int(next(loader)["images"][0, 0, 0, 0]) for _ in range(NUMBER_OF["pairs"])]
    assert sorted(numbers) == list(range(NUMBER_OF["pairs"]))
    with pytest.raises(UserError, match="divide"):
        make_image_loader(ImageDataConfig(sets=(str(path),), image_size=8), batch_size=3, seed=0, process_count=2)
