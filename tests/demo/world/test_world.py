"""The files of the synthetic world, opened with the libraries that are used for the real sets."""

import csv
import hashlib
import io
import json
import re
import tarfile

import av
import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest

from emu_jax.data.document import Document
from emu_jax.data.sources import SOURCES, ReadOptions
from emu_jax.demo.world.classifier import classify_scene
from emu_jax.demo.world.grammar import parse_caption
from emu_jax.demo.world.media import encode_mp4
from emu_jax.demo.world.motion import parse_direction, render_clip, sample_clip
from emu_jax.demo.world.scenes import Object, is_held_out
from emu_jax.demo.world.world import WorldSizes, write_world
from emu_jax.errors import UserError

SIZES = WorldSizes(laion2b=60, laion_coco=150, mmc4=20, webvid=12, storyboards=20, in_context=20, llava=40, videochat=8)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("synthetic") / "world", seed=1, sizes=SIZES).directory


def digests(directory):
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def members(path):
    with tarfile.open(path) as archive:
        return {item.name: archive.extractfile(item).read() for item in archive}


def pixels(data):
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


def frames(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def matches(image, text):
    """Return True if the text names the background and the objects of the image with all their attributes."""
    detected, parsed = classify_scene(image), parse_caption(text)

    def objects(found):
        return {(item.shape, item.color, item.size, item.location) for item in found.objects}

    return parsed.background is detected.background and objects(parsed) == objects(detected)


@pytest.mark.parametrize("name", ["laion2b", "laion_coco"])
def test_pairs_have_the_layout_of_img2dataset(world, name):
    folder = world / name
    assert sorted(path.name for path in folder.iterdir()) == ["00000.parquet", "00000.tar", "00000_stats.json"]
    samples = members(folder / "00000.tar")
    rows = {row["key"]: row for row in pyarrow.parquet.read_table(folder / "00000.parquet").to_pylist()}
    stats = json.loads((folder / "00000_stats.json").read_text())
    keys = sorted({name.split(".")[0] for name in samples})
    assert set(samples) == {f"{key}.{part}" for key in keys for part in ("jpg", "json", "txt")}
    assert len(keys) == getattr(SIZES, name) == stats["successes"] == stats["status_dict"]["success"]
    assert stats["count"] == len(rows) == stats["successes"] + stats["failed_to_download"]
    assert [key for key, row in rows.items() if row["status"] == "success"] == keys
    for key in keys:
        row = json.loads(samples[f"{key}.json"])
        assert row == rows[key]
        assert row["sha256"] == hashlib.sha256(samples[f"{key}.jpg"]).hexdigest()
        assert row["caption"] == samples[f"{key}.txt"].decode()
        assert pixels(samples[f"{key}.jpg"]).shape == (row["height"], row["width"], 3) == (32, 32, 3)


def test_clean_captions_describe_their_images(world):
    samples = members(world / "laion_coco" / "00000.tar")
    keys = {name.split(".")[0] for name in samples}
    assert all(matches(pixels(samples[f"{key}.jpg"]), samples[f"{key}.txt"].decode()) for key in keys)


def test_no_image_of_the_pairs_is_held_out(world):
    for name in ("laion2b", "laion_coco"):
        for path, data in members(world / name / "00000.tar").items():
            if path.endswith(".jpg"):
                found = classify_scene(pixels(data)).objects
                assert found
                assert not any(is_held_out(Object(item.shape, item.color, item.size, item.location)) for item in found)


def test_some_links_are_dead(tmp_path):
    sizes = WorldSizes(**dict.fromkeys(vars(WorldSizes()), 0) | {"laion2b": 600})
    folder = write_world(tmp_path, sizes=sizes, image_size=16).folders["laion2b"]
    rows = pyarrow.parquet.read_table(folder / "00000.parquet").to_pylist()
    dead = [row for row in rows if row["status"] == "failed_to_download"]
    assert dead
    assert all(row["sha256"] is row["width"] is None and row["error_message"] for row in dead)


def test_pages_have_the_layout_of_mmc4(world):
    folder = world / "mmc4"
    documents = [json.loads(line) for line in (folder / "docs_shard_0_v3.jsonl").read_text().splitlines()]
    assert len(documents) == SIZES.mmc4
    names = [info["image_name"] for document in documents for info in document["image_info"]]
    assert sorted(names) == sorted(path.name for path in (folder / "images").iterdir())
    for document in documents:
        similarity = np.array(document["similarity_matrix"])
        assert similarity.shape == (len(document["image_info"]), len(document["text_list"]))
        for info, row in zip(document["image_info"], similarity, strict=True):
            sentence = document["text_list"][info["matched_text_index"]]
            assert info["matched_sim"] == row[info["matched_text_index"]] == row.max()
            image = pixels((folder / "images" / info["image_name"]).read_bytes())
            assert info["matched_sim"] < 0.32 or matches(image, sentence)


def test_clips_have_the_layout_of_webvid(world):
    folder = world / "webvid"
    with open(folder / "results_10M_train_0.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == SIZES.webvid
    assert list(rows[0]) == ["videoid", "contentUrl", "duration", "page_dir", "name"]
    for row in rows:
        video = frames(folder / "videos" / row["page_dir"] / f"{row['videoid']}.mp4")
        assert len(video) == 8
        assert video[0].shape == (64, 64, 3)
        parsed = parse_caption(row["name"]).objects[0]
        first, last = (classify_scene(video[index]).largest for index in (0, -1))
        assert (first.shape, first.color, first.size) == (parsed.shape, parsed.color, parsed.size)
        assert (last.shape, last.color, last.size) == (parsed.shape, parsed.color, parsed.size)
        x = ("left" in last.location.value) - ("left" in first.location.value)
        y = ("top" in last.location.value) - ("top" in first.location.value)
        assert {(1, 0): "left", (-1, 0): "right", (0, 1): "up", (0, -1): "down"}[x, y] == parse_direction(
            row["name"]
        ).value


def test_storyboards_have_the_layout_of_emus_tool(world):
    samples = members(world / "storyboards" / "0000000.tar")
    videos = {name.split(".")[0] for name in samples}
    assert len(videos) == SIZES.storyboards
    for video in videos:
        meta = json.loads(samples[f"{video}.final_meta.json"])
        parts = [name.removeprefix(f"{video}.") for name in samples if name.startswith(f"{video}.")]
        texts = sorted(int(part[:-4]) for part in parts if re.fullmatch(r"\d+\.txt", part))
        images = sorted(int(part[:-4]) for part in parts if re.fullmatch(r"\d+\.png", part))
        assert images == list(range(meta["frame_num"]))
        assert texts in (images, [*images, len(images)])
        assert [s["text"] for s in meta["subtitle"]] == [
            text for i in texts if (text := samples[f"{video}.{i}.txt"].decode())
        ]
        first = samples[f"{video}.0.txt"].decode()
        assert not first or matches(pixels(samples[f"{video}.0.png"]), first)


def test_in_context_targets_are_the_first_object_in_the_second_color(world):
    samples = members(world / "in_context" / "0000000.tar")
    videos = {name.split(".")[0] for name in samples}
    assert len(videos) == SIZES.in_context
    for video in videos:
        first, second, target = (classify_scene(pixels(samples[f"{video}.{i}.png"])).largest for i in range(3))
        assert (target.shape, target.size, target.location) == (first.shape, first.size, first.location)
        assert target.color is second.color is not first.color


def test_chats_have_the_layout_of_llava(world):
    chats = json.loads((world / "llava" / "llava_instruct_0.json").read_text())
    assert len(chats) == SIZES.llava
    for chat in chats:
        image = pixels((world / "llava" / "images" / chat["image"]).read_bytes())
        assert image.shape == (32, 32, 3)
        turns = chat["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert [turn["value"].count("<image>") for turn in turns] == [1] + [0] * (len(turns) - 1)


def test_video_chats_have_the_layout_of_videochat(world):
    chats = json.loads((world / "videochat" / "videochat_instruct_0.json").read_text())
    assert len(chats) == SIZES.videochat
    for chat in chats:
        assert len(frames(world / "videochat" / "videos" / chat["video"])) == 8
        assert {qa["a"] for qa in chat["QA"]} < {"left", "right", "up", "down"}


def test_equal_seeds_give_equal_bytes_and_other_seeds_others(world, tmp_path):
    again = write_world(tmp_path / "again", seed=1, sizes=SIZES)
    assert digests(again.directory) == digests(world)
    own, other = digests(world), digests(write_world(tmp_path / "other", seed=2, sizes=SIZES.scaled(0.2)).directory)
    assert all(own[name] != digest for name, digest in other.items() if name.endswith((".tar", ".jsonl", ".csv")))


def test_an_interrupted_world_resumes_to_equal_bytes(world, tmp_path):
    class Stopped(Exception):
        pass

    def stop(name, done, total):
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        write_world(tmp_path, seed=1, sizes=SIZES, progress=stop)
    calls = []
    summary = write_world(tmp_path, seed=1, sizes=SIZES, progress=lambda *call: calls.append(call))
    assert (summary.written, summary.found) == (5, 3)
    assert calls[-1] == ("videochat", 8, 8)
    assert digests(tmp_path) == digests(world)
    assert write_world(tmp_path, seed=1, sizes=SIZES).written == 0


def test_large_sets_have_several_shards_with_unique_keys(tmp_path, monkeypatch):
    monkeypatch.setattr("emu_jax.demo.world.world.SHARD_SIZE", 50)
    sizes = WorldSizes(**dict.fromkeys(vars(WorldSizes()), 0) | {"laion_coco": 55})
    folder = write_world(tmp_path, sizes=sizes, image_size=16).folders["laion_coco"]
    first, second = members(folder / "00000.tar"), members(folder / "00001.tar")
    assert (len(first), len(second)) == (3 * 50, 3 * 5)
    assert not set(first) & set(second)
    images = [{data for name, data in shard.items() if name.endswith("jpg")} for shard in (first, second)]
    assert not images[0] & images[1]


def test_other_worlds_and_other_files_are_never_overwritten(world, tmp_path):
    with pytest.raises(UserError, match="another seed: choose an empty directory"):
        write_world(world, seed=2, sizes=SIZES)
    with pytest.raises(UserError, match="another image_size, sizes: choose"):
        write_world(world, seed=1, image_size=48)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no synthetic world"):
        write_world(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_scaled_sizes_omit_no_set():
    assert WorldSizes(mmc4=0).scaled(1e-6) == WorldSizes(1, 1, 0, 1, 1, 1, 1, 1)
    assert WorldSizes(webvid=100).scaled(0.5).webvid == 50


def test_equal_videos_give_equal_bytes():
    """With x264's assembly code, one of these in ten differed from run to run."""
    rng = np.random.default_rng(0)
    videos = [render_clip(sample_clip(rng), rng, size=64, num_frames=8) for _ in range(12)]
    expected = [encode_mp4(video, fps=4) for video in videos]
    for _ in range(8):
        assert [encode_mp4(video, fps=4) for video in videos] == expected


@pytest.mark.parametrize(
    ("name", "source", "file"),
    [
        ("laion2b", "pairs", "00000.tar"),
        ("laion_coco", "pairs", "00000.tar"),
        ("mmc4", "mmc4", "docs_shard_0_v3.jsonl"),
        ("webvid", "webvid", "results_10M_train_0.csv"),
        ("storyboards", "storyboard", "0000000.tar"),
        ("in_context", "storyboard", "0000000.tar"),
        ("llava", "llava", "llava_instruct_0.json"),
        ("videochat", "videochat", "videochat_instruct_0.json"),
    ],
)
def test_the_sources_of_the_real_sets_accept_every_document(world, name, source, file):
    found = list(SOURCES[source].read(world / name / file, ReadOptions()))
    assert len(found) == getattr(SIZES, name)
    assert all(isinstance(document, Document) for document in found)
