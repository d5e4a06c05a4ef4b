"""A prepared set holds what was whole in the input, all of it, once; stopped, it goes on; half of it is never seen."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import emu_jax.data.prepare.prepare as module
from emu_jax.cli.prepare_data import main
from emu_jax.data.document import Document, Image, Layout, Role, Text, Video
from emu_jax.data.images import decode, preprocess
from emu_jax.data.loader.prepared import PreparedSet
from emu_jax.data.prepare import parts
from emu_jax.data.prepare.prepare import PrepareConfig, Store, prepare
from emu_jax.data.records import from_record, serialize
from emu_jax.errors import UserError
from tests.data.conftest import picture, write_jsonl

CONFIG = PrepareConfig(source="jsonl", image_size=8, min_side=4)

pixels = st.integers(1, 5).flatmap(
    lambda h: st.integers(1, 5).map(lambda w: np.arange(h * w * 3, dtype=np.uint8).reshape(h, w, 3))
)
data = st.one_of(st.binary(max_size=20), pixels)
roles = st.sampled_from([None, *Role])
segments = st.one_of(
    st.builds(Text, st.text(st.characters(exclude_categories=["Cs"])), roles),
    st.builds(Image, data, roles),
    st.builds(Video, st.one_of(st.binary(max_size=9), st.lists(st.builds(Image, data), min_size=1).map(tuple)), roles),
)


def same(one, other):
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)
        )
    return one == other


@settings(deadline=None)
@given(st.lists(segments, max_size=5), st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(Layout))
def test_a_record_keeps_every_bit(segments, key, layout):
    document = Document(tuple(segments), source="a set", key=key, layout=layout)
    assert same(from_record(serialize(document)), document)


def pair(n, text=None, image=None):
    return {"layout": "pair", "segments": [{"image": image or f"{n}.png"}, {"text": text or f"number {n}"}]}


def raw(folder, count=5, start=0, name="raw", extra=(), images=None):
    pictures = {f"{n}.png": picture(n) for n in range(start, start + count)} | (images or {})
    return write_jsonl(folder, name, [*(pair(n) for n in range(start, start + count)), *extra], pictures)


def texts(path):
    return [document.segments[1].text for document in map(PreparedSet(path).__getitem__, range(len(PreparedSet(path))))]


@pytest.mark.parametrize("store", list(Store))
def test_documents_come_back_with_the_pixels_of_the_release_s_resize(tmp_path, store):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path = raw(tmp_path / "in", extra=[pair("x")], images={"x.png": noise})
    summary = prepare([path], tmp_path / "out", config=dataclasses.replace(CONFIG, store=store, name="mine"))
    assert (summary.read, summary.written, summary.outcomes, summary.images) == (6, 6, {}, 6)
    document = PreparedSet(tmp_path / "out")[5]
    assert (document.source, document.key, document.layout) == ("mine", "raw.jsonl:6", Layout.PAIR)
    error = np.abs(decode(document.segments[0].data).astype(int) - preprocess(noise, 8)).mean()
    assert error == 0 if store is not Store.JPEG else 0 < error < 4  # noise is the worst case of a JPEG
    assert isinstance(document.segments[0].data, np.ndarray if store is Store.RAW else bytes)
    assert texts(tmp_path / "out") == [*(f"number {n}" for n in range(5)), "number x"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_files_are_kept_as_they_are_without_a_size(tmp_path):
    path = raw(tmp_path / "in", count=1)
    prepare([path], tmp_path / "out", config=dataclasses.replace(CONFIG, image_size=None))
    assert PreparedSet(tmp_path / "out")[0].segments[0].data == (tmp_path / "in" / "0.png").read_bytes()


def test_every_loss_is_counted_and_named(tmp_path):
    extra = [
        pair("broken"),
        pair("missing"),
        pair("thin"),
        pair("long"),
        pair(0, text=" "),
        pair(1),
        {"layout": "pair", "segments": [{"image": "2.png"}, {"text": "number 2"}], "key": "again"},
    ]
    images = {"thin.png": np.zeros((40, 2, 3), np.uint8), "long.png": np.zeros((4, 40, 3), np.uint8)}
    path = raw(tmp_path / "in", extra=extra, images=images)
    (tmp_path / "in" / "broken.png").write_bytes(b"a text file named .png")
    summary = prepare([path], tmp_path / "out", config=dataclasses.replace(CONFIG, max_rejected=0.5))
    assert (summary.read, summary.written) == (12, 5)
    assert summary.outcomes == {
        "broken": {"the file is not an image of a known format": 1, "the file 'missing.png' is not there": 1},
        "dropped": {"an image is too small": 1, "an image is too long": 1, "no text": 1},
        "duplicate": {"the same as one before": 2},
    }
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert len(rejects) == 7
    assert {
        "source": "jsonl",
        "key": "raw.jsonl:again",
        "outcome": "duplicate",
        "reason": "the same as one before",
    } in rejects
    saved = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (saved["read"], saved["written"]) == (12, 5)


def test_too_much_broken_stops_and_what_is_mended_is_read_again(tmp_path):
    path = raw(tmp_path / "in", extra=[pair("late"), pair("later")])
    with pytest.raises(
        UserError, match=r"2 of 7 documents are broken, .* raw.jsonl:7: the file 'later.png' is not there"
    ):
        prepare([path], tmp_path / "out", config=CONFIG)
    assert not (tmp_path / "out").exists()
    raw(
        tmp_path / "in", extra=[pair("late"), pair("later")], images={"late.png": picture(90), "later.png": picture(91)}
    )
    assert prepare([path], tmp_path / "out", config=CONFIG).written == 7


def test_going_on_does_not_read_again_what_was_read(tmp_path, monkeypatch):
    paths = [raw(tmp_path / "in", start=10 * i, name=f"raw{i}") for i in range(3)]
    done, real = [], module.make_part

    def stops_at_the_third(task, **keywords):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task)
        return real(task, **keywords)

    monkeypatch.setattr(module, "make_part", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare(paths, tmp_path / "out", config=CONFIG)
    monkeypatch.undo()
    with pytest.raises(UserError, match="is not a prepared set"):
        PreparedSet(tmp_path / "out")
    cleaned = []
    real_clean = parts.clean
    monkeypatch.setattr(parts, "clean", lambda d, c: cleaned.append(d.key) or real_clean(d, c))
    summary = prepare(paths, tmp_path / "out", config=CONFIG)
    assert summary.written == 15
    assert len(cleaned) == 5, "only the third file was read"
    again = prepare(paths, tmp_path / "out", config=CONFIG)
    assert again == summary


def test_workers_make_the_same_set(tmp_path):
    paths = [raw(tmp_path / "in", count=3, start=10 * i, name=f"raw{i}") for i in range(3)]
    alone = prepare(paths, tmp_path / "alone", config=CONFIG)
    together = prepare(paths, tmp_path / "together", config=CONFIG, workers=2)
    assert (together.read, together.written) == (alone.read, alone.written) == (9, 9)
    assert texts(tmp_path / "together") == texts(tmp_path / "alone")


def test_a_share_is_judged_once_there_is_enough(tmp_path):
    """Two broken of the first three are no reason to stop where the rest is whole; a share of 0 bears not even one."""
    first = raw(tmp_path / "in", count=1, extra=[pair("gone"), pair("lost")], name="raw0")
    second = raw(tmp_path / "in", count=40, start=1, name="raw1")
    few = dataclasses.replace(CONFIG, max_rejected=0.05)
    assert prepare([first, second], tmp_path / "out", config=few).written == 41
    third = raw(tmp_path / "in", count=40, start=50, extra=[pair("gone")], name="raw2")
    with pytest.raises(UserError, match="1 of 41 documents are broken"):
        prepare([third], tmp_path / "none", config=dataclasses.replace(CONFIG, max_rejected=0.0))


def test_files_of_one_name_are_told_apart(tmp_path):
    paths = [raw(tmp_path / "in" / f"{i}" / "deep", count=0, extra=[pair("gone")]) for i in range(2)]
    paths.append(raw(tmp_path / "in", start=5))
    summary = prepare(paths, tmp_path / "out", config=dataclasses.replace(CONFIG, max_rejected=0.5))
    assert summary.written == 5
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["key"] for reject in rejects] == ["0/deep/raw.jsonl:1", "1/deep/raw.jsonl:1"]


def test_the_contact_sheet_shows_what_was_stored(tmp_path):
    path = raw(tmp_path / "in", extra=[pair("x", text="<script>alert(1)</script>")], images={"x.png": picture(9)})
    prepare([path], tmp_path / "out", config=CONFIG)
    sheet = (tmp_path / "out" / "samples.html").read_text()
    assert sheet.count("data:image/png") == 6
    assert "number 3" in sheet
    assert "&lt;script&gt;" in sheet
    assert "<script>" not in sheet


def test_another_input_or_setting_is_not_mixed_in(tmp_path):
    path = raw(tmp_path / "in")
    prepare([path], tmp_path / "out", config=CONFIG)
    with pytest.raises(UserError, match="other input or with other settings"):
        prepare([path], tmp_path / "out", config=dataclasses.replace(CONFIG, image_size=16))
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="is not a prepared set; choose another output"):
        prepare([path], tmp_path / "mine", config=CONFIG)


def test_nothing_left(tmp_path):
    path = write_jsonl(tmp_path / "in", "raw", [pair(0, text=" ")], {"0.png": picture(0)})
    with pytest.raises(UserError, match="Nothing is left of the 1 documents"):
        prepare([path], tmp_path / "out", config=CONFIG)
    with pytest.raises(UserError, match="no source 'json'"):
        dataclasses.replace(CONFIG, source="json")


@pytest.mark.e2e
def test_killed_and_started_again(tmp_path):
    """kill -9 anywhere: no set, or the whole set; the next call completes it."""
    for i in range(6):
        raw(tmp_path / "in", count=60, start=60 * i, name=f"raw{i}")
    command = [sys.executable, "-m", "emu_jax", "prepare-data", "--source=jsonl", f"--input={tmp_path}/in/*.jsonl"]
    command += [f"--output={tmp_path}/out", "--image-size=8", "--min-side=4"]
    for wait in (3.0, 5.0, 6.0):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if (tmp_path / "out").exists():
            assert len(PreparedSet(tmp_path / "out")) == 360
    subprocess.run(command, check=True, capture_output=True)
    assert sorted(texts(tmp_path / "out")) == sorted(f"number {n}" for n in range(360))


def test_the_command(tmp_path, capsys):
    raw(tmp_path / "in", extra=[pair("long")], images={"long.png": np.zeros((4, 40, 3), np.uint8)})
    main(
        ["--source=jsonl", f"--input={tmp_path}/in/*.jsonl", f"--output={tmp_path}/out", "--image-size=8",
         "--min-side=4", "--store=raw"]
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "5 of 6 documents, 5 images" in out
    assert "dropped: 1 x an image is too long" in out
    assert len(PreparedSet(tmp_path / "out")) == 5
    for arguments, reason in [
        (["--source=jsonl", "--input=nothing*", "--output=x"], "No file matches nothing"),
        (["--source=nope", f"--input={tmp_path}/in/*.jsonl", "--output=x"], "no source 'nope'"),
        (["--source=jsonl", f"--input={tmp_path}/in/*.jsonl", "--output=x", "--media=nowhere"], "is neither a folder"),
    ]:
        with pytest.raises(UserError, match=reason):
            main(arguments)


def test_videos_become_frames(tmp_path):
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for i in range(9):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * i, np.uint8))))
        container.mux(stream.encode())
    record = {"layout": "video", "segments": [{"video": "a.mp4"}, {"text": "brighter"}]}
    path = write_jsonl(tmp_path / "in", "raw", [record], {})
    (tmp_path / "in" / "a.mp4").write_bytes(buffer.getvalue())
    summary = prepare([path], tmp_path / "out", config=dataclasses.replace(CONFIG, frames=3))
    assert summary.images == 3
    frames = PreparedSet(tmp_path / "out")[0].segments[0].data
    means = [decode(frame.data).mean() for frame in frames]
    assert means == sorted(means)
    assert means[0] < means[2] - 60


def test_a_picture_of_the_camera_is_stored_upright(tmp_path):
    stored = PIL.Image.fromarray(np.concatenate([np.full((8, 8, 3), v, np.uint8) for v in (0, 255)], axis=1))
    exif = PIL.Image.Exif()
    exif[0x112] = 3
    path = raw(tmp_path / "in", count=0, extra=[pair("x")])
    stored.save(tmp_path / "in" / "x.png", exif=exif)
    prepare([path], tmp_path / "out", config=CONFIG)
    upright = decode(PreparedSet(tmp_path / "out")[0].segments[0].data)
    assert upright[4, 0, 0] > 200 > 50 > upright[4, 7, 0]
