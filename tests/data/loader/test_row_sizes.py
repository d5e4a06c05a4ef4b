"""Sizes of documents in packed batches, and the rows and image slots that they require."""

import numpy as np
import pytest

from emu_jax.data.batch import BatchConfig
from emu_jax.data.loader.config import DataConfig, SetConfig
from emu_jax.data.loader.pipeline import make_loader, make_sequence_source
from emu_jax.data.loader.row_sizes import describe_step, document_sizes, recommend_max_images, simulate_fill, step_sizes
from emu_jax.errors import UserError


def config(sets, **fields):
    return DataConfig(
        sets=tuple(SetConfig(path=str(path), name=name) for name, path in sets.items()),
        batch=BatchConfig(batch_size=4, length=96, max_images=4, image_size=8),
        num_image_tokens=2,
        pool=16,
        prefetch=0,
        **fields,
    )


def test_sizes_of_packed_documents_are_those_of_their_sequences(sets, small_tokenizer):
    data = config(sets)
    batch = next(make_loader(data, tokenizer=small_tokenizer, seed=0))
    source = make_sequence_source(data, tokenizer=small_tokenizer, seed=0)
    all_sizes = {
        (len(found[0].tokens), len(found[0].images)) for p in range(400) if (found := source.sequence_at(0, p))
    }
    sizes = document_sizes(batch, image_token_id=small_tokenizer.image_token_id)
    assert set(sizes) <= all_sizes
    assert np.sum(sizes, axis=0).tolist() == [int((batch["segment_ids"] > 0).sum()), int(batch["num_images"].sum())]


def test_a_step_and_the_rows_that_reach_the_recipe():
    sizes = [(50, 1)] * 60  # of 30 rows: two in each
    step = step_sizes(sizes, rows=30, batch_size=512, length=100, max_images=4)
    assert (step.documents, step.tokens, step.images) == (1024, 51_200, 1024)
    assert (step.used.tokens, step.used.images) == (1.0, 0.5)
    printed = "\n".join(
        describe_step(sizes, rows=30, batch_size=512, length=100, max_images=4, samples_per_step=8192, pool=16)
    )
    assert "A step has 1,024 documents, 51,200 tokens and 1,024 images" in printed
    assert "max_images=2 would use 100.0% of the tokens and 100.0% of the image slots" in printed
    assert "8,192 documents per step: 12% of them are reached; 4096 rows" in printed


def test_recommended_slots_hold_the_images_of_every_document():
    assert recommend_max_images([(10, 1)] * 20 + [(100, 7)], length=100, pool=8)[0] >= 7


def test_simulated_rows_use_each_document_equally_often():
    used, documents = simulate_fill([(30, 1), (70, 2)], length=100, max_images=3, pool=8)
    assert (used.tokens, used.images, documents) == (1.0, 1.0, 2.0)


@pytest.mark.parametrize(("field", "value", "message"), [("max_images", 5, "4 of a row"), ("max_length", 97, "96 of")])
def test_limits_of_a_set_fit_in_a_row(sets, small_tokenizer, field, value, message):
    data = config({"pairs": sets["pairs"]})
    object.__setattr__(data.sets[0], field, value)
    with pytest.raises(UserError, match=f"{field} .* more than the {message}"):
        make_loader(data, tokenizer=small_tokenizer, seed=0)
