"""Documents that the loader cannot use are listed once, with source, key and reason; too many stop the run."""

import dataclasses
import json
import re

import numpy as np
import pytest

from emu_jax.data.batch import BatchConfig
from emu_jax.data.document import Document, Image, Layout, Text
from emu_jax.data.limits import Limits
from emu_jax.data.loader.config import DataConfig, SetConfig
from emu_jax.data.loader.pipeline import make_loader
from emu_jax.data.prepare.tfds_folder import build_folder
from emu_jax.data.records import to_example
from emu_jax.errors import UserError

COUNT = 300


def make_set(folder, broken):
    """Prepare COUNT pairs, of which those in `broken` have an image that cannot be decoded."""

    def examples():
        for n in range(COUNT):
            image = b"no image" if n in broken else np.zeros((8, 8, 3), np.uint8)
            segments = (Image(image), Text(f"number {n}"))
            yield n, to_example(Document(segments, source="web", key=f"0.tar:{n}", layout=Layout.PAIR))

    return build_folder(examples, folder, split="train")


def config_of(folder, tmp_path, **changes):
    config = DataConfig(
        sets=(SetConfig(path=str(folder), epochs=1),),
        batch=BatchConfig(batch_size=2, length=96, max_images=4, image_size=8),
        num_image_tokens=2,
        pool=16,
        prefetch=0,
        rejects=str(tmp_path / "rejects"),
    )
    return dataclasses.replace(config, **changes)


def listed(tmp_path, reader="00000-of-00001"):
    path = tmp_path / "rejects" / f"reader-{reader}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_reject_is_listed_and_the_other_documents_are_read(tmp_path, small_tokenizer):
    broken = {3, 100, 250}
    config = config_of(make_set(tmp_path / "set", broken), tmp_path)
    loader = make_loader(config, tokenizer=small_tokenizer, seed=0)
    images = sum(int(batch["num_images"].sum()) for batch in loader)
    assert images == COUNT - len(broken)
    reason = "the file is not an image of a known format"
    found = sorted(listed(tmp_path), key=lambda reject: int(reject["key"].partition(":")[2]))
    assert found == [{"source": "web", "key": f"0.tar:{n}", "reason": reason} for n in sorted(broken)]


def test_a_damaged_record_is_listed_by_its_number(tmp_path, small_tokenizer):
    """One changed byte of a shard makes the records of its chunk unreadable; the others can be read."""
    folder = make_set(tmp_path / "set", set())
    shard = next(folder.glob("*.array_record-*"))
    data = bytearray(shard.read_bytes())
    used = [at for at, byte in enumerate(data) if byte]
    data[used[len(used) // 2]] ^= 255
    shard.write_bytes(data)
    config = config_of(folder, tmp_path, max_rejected=0.9)
    images = sum(int(b["num_images"].sum()) for b in make_loader(config, tokenizer=small_tokenizer, seed=0))
    found = listed(tmp_path)
    assert 0 < len(found) == COUNT - images < COUNT / 2
    assert all(re.fullmatch(r"record \d+", reject["key"]) for reject in found)
    assert all(reject["reason"].startswith("the record is damaged") for reject in found)


def test_a_damaged_set_is_a_user_error(tmp_path, small_tokenizer):
    folder = make_set(tmp_path / "set", set())
    config, shard, info = (
        config_of(folder, tmp_path),
        next(folder.glob("*.array_record-*")),
        folder / "dataset_info.json",
    )
    intact, metadata = shard.read_bytes(), info.read_text()
    for size in (0, 1000, len(intact) // 2, len(intact) - 5):
        shard.write_bytes(intact[:size])
        with pytest.raises(UserError, match="is damaged or truncated"):
            next(make_loader(config, tokenizer=small_tokenizer, seed=0))
    shard.write_bytes(intact)
    for text in ("", metadata[: len(metadata) // 2], "[]", '{"splits": [{"name": "train"}]}'):
        info.write_text(text)
        with pytest.raises(UserError, match=r"dataset_info\.json is damaged"):
            make_loader(config, tokenizer=small_tokenizer, seed=0)
    info.write_text(metadata.replace(f'"{COUNT}"', f'"{COUNT + 7}"'))
    with pytest.raises(UserError, match=f"hold {COUNT} documents, but its dataset_info.json lists {COUNT + 7}"):
        next(make_loader(config, tokenizer=small_tokenizer, seed=0))


def test_resume_restores_the_list_of_rejects(tmp_path, small_tokenizer):
    config = config_of(make_set(tmp_path / "set", {7 * n for n in range(9)}), tmp_path)
    straight = make_loader(config, tokenizer=small_tokenizer, seed=0)
    states, counts = [], []
    for _ in straight:
        states.append(json.loads(json.dumps(straight.get_state())))
        counts.append(len(listed(tmp_path)))
    complete = listed(tmp_path)
    assert len(complete) == 9
    stop = next(i for i, count in enumerate(counts) if count >= 3)
    resumed = make_loader(config, tokenizer=small_tokenizer, seed=0)
    resumed.set_state(states[stop])
    list(resumed)
    assert listed(tmp_path) == complete


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.e2e)])
def test_too_many_rejects_stop_the_run_with_one_line(tmp_path, small_tokenizer, workers):
    config = config_of(make_set(tmp_path / "set", set(range(0, COUNT, 2))), tmp_path, workers=workers)
    loader = make_loader(config, tokenizer=small_tokenizer, seed=0)
    with pytest.raises(
        UserError, match=r"^11 of \d+ documents could not be used, more than the fraction 0\.01"
    ) as caught:
        for _ in loader:
            pass
    assert "web: 0.tar:" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert max(len(listed(tmp_path, f"{i:05d}-of-{max(workers, 1):05d}")) for i in range(max(workers, 1))) == 11


def test_rejects_before_a_restart_still_count(tmp_path, small_tokenizer):
    config = config_of(make_set(tmp_path / "set", set(range(0, COUNT, 2))), tmp_path)
    loader = make_loader(config, tokenizer=small_tokenizer, seed=0)
    next(loader)
    state = loader.get_state()
    before = len(listed(tmp_path))
    assert 0 < before < 10
    with pytest.raises(UserError, match="11 of"):
        list(loader)
    resumed = make_loader(config, tokenizer=small_tokenizer, seed=0)
    resumed.set_state(state)
    with pytest.raises(UserError, match="11 of"):
        list(resumed)
    assert len(listed(tmp_path)) == 11


@pytest.mark.parametrize("limit", [{"image_pixels": 63}, {"image_side": 7}])
def test_limits_of_the_loader(tmp_path, small_tokenizer, limit):
    config = config_of(make_set(tmp_path / "set", set()), tmp_path, limits=Limits(**limit), max_rejected=0.001)
    with pytest.raises(UserError, match="the image has too many pixels"):
        list(make_loader(config, tokenizer=small_tokenizer, seed=0))


@pytest.mark.parametrize(
    "change",
    [
        {"workers": -1}, {"prefetch": -1}, {"pool": 0}, {"max_rejected": float("nan")}, {"max_rejected": 2.0},
        {"max_images_per_document": 0},
    ],
)  # fmt: skip
def test_options_out_of_range(tmp_path, change):
    with pytest.raises(UserError, match=f"^{next(iter(change))} must be"):
        config_of(tmp_path, tmp_path, **change)
