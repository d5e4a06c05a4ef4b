"""A prepared set holds every valid document of the input once; a stopped preparation resumes."""

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

import emu_jax.data.prepare.job as module
from emu_jax.cli.prepare_data import main, report
from emu_jax.data.document import Document, Image, Layout, Role, Text, Video
from emu_jax.data.images import decode, preprocess
from emu_jax.data.loader.prepared_set import PreparedSet
from emu_jax.data.prepare import part_files
from emu_jax.data.prepare.cleaning import Store
from emu_jax.data.prepare.job import prepare
from emu_jax.data.records import from_record, serialize
from emu_jax.errors import UserError
from emu_jax.io.lock import LOCK_FILE, folder_lock
from tests.data.conftest import color_image, write_jsonl
from tests.data.prepare.raw_files import CONFIG, pair, raw

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


def texts(path):
    return [document.segments[1].text for document in map(PreparedSet(path).__getitem__, range(len(PreparedSet(path))))]


@pytest.mark.parametrize("store", list(Store))
def test_documents_have_the_pixels_of_the_release(tmp_path, store):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path = raw(tmp_path / "in", extra=[pair("x")], images={"x.png": noise})
    summary = prepare([path], tmp_path / "out", config=dataclasses.replace(CONFIG, store=store, name="mine"))
    assert (summary.read, summary.written, summary.outcomes, summary.images) == (6, 6, {}, 6)
    document = PreparedSet(tmp_path / "out")[5]
    assert (document.source, document.key, document.layout) == ("mine", "raw.jsonl:6", Layout.PAIR)
    error = np.abs(decode(document.segments[0].data).astype(int) - preprocess(noise, 8)).mean()
    assert error == 0 if store is not Store.JPEG else 0 < error < 4  # noise is the worst case for JPEG
    assert isinstance(document.segments[0].data, np.ndarray if store is Store.RAW else bytes)
    assert texts(tmp_path / "out") == [*(f"number {n}" for n in range(5)), "number x"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_second_preparation_of_the_same_output_is_refused(tmp_path):
    path = raw(tmp_path / "in", count=1)
    lock = folder_lock(tmp_path / "out", file=tmp_path / ".out.partial" / LOCK_FILE)
    with lock, pytest.raises(UserError, match="out is in use by process"):
        prepare([path], tmp_path / "out", config=CONFIG)
    assert prepare([path], tmp_path / "out", config=CONFIG).written == 1
    assert not list(tmp_path.glob(".out*"))


def test_files_are_stored_unchanged_without_a_size(tmp_path):
    path = raw(tmp_path / "in", count=1)
    prepare([path], tmp_path / "out", config=dataclasses.replace(CONFIG, image_size=None))
    assert PreparedSet(tmp_path / "out")[0].segments[0].data == (tmp_path / "in" / "0.png").read_bytes()


def test_every_lost_document_is_counted_and_listed(tmp_path):
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
    assert summary.outcomes == {"broken": 2, "dropped": 3, "duplicate": 2}
    assert summary.reasons == {
        "broken": {"the file is not an image of a known format": 1, "a media file is missing": 1},
        "dropped": {"an image is too small": 1, "the aspect ratio of an image is too large": 1, "no text": 1},
        "duplicate": {"same content as an earlier document": 2},
    }
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert len(rejects) == 7
    assert {
        "source": "jsonl",
        "key": "raw.jsonl:again",
        "unit": "record",
        "outcome": "duplicate",
        "reason": "same content as an earlier document",
    } in rejects
    saved = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (saved["read"], saved["written"]) == (12, 5)


def test_too_many_broken_documents_stop_and_repaired_files_are_read_again(tmp_path):
    path = raw(tmp_path / "in", extra=[pair("late"), pair("later")])
    with pytest.raises(
        UserError, match=r"2 of 7 documents are broken, .* raw.jsonl:7: a media file is missing \(later.png\)"
    ):
        prepare([path], tmp_path / "out", config=CONFIG)
    assert not (tmp_path / "out").exists()
    raw(
        tmp_path / "in",
        extra=[pair("late"), pair("later")],
        images={"late.png": color_image(90), "later.png": color_image(91)},
    )
    assert prepare([path], tmp_path / "out", config=CONFIG).written == 7


def test_resume_does_not_read_finished_files_again(tmp_path, monkeypatch):
    paths = [raw(tmp_path / "in", start=10 * i, name=f"raw{i}") for i in range(3)]
    done, real = [], module.make_part

    def stop_at_the_third(task, **keywords):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task)
        return real(task, **keywords)

    monkeypatch.setattr(module, "make_part", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare(paths, tmp_path / "out", config=CONFIG)
    monkeypatch.undo()
    with pytest.raises(UserError, match="is not a prepared set"):
        PreparedSet(tmp_path / "out")
    cleaned = []
    real_clean = part_files.clean
    monkeypatch.setattr(part_files, "clean", lambda d, c: cleaned.append(d.key) or real_clean(d, c))
    summary = prepare(paths, tmp_path / "out", config=CONFIG)
    assert summary.written == 15
    assert len(cleaned) == 5, "only the third file was read"
    again = prepare(paths, tmp_path / "out", config=CONFIG)
    assert again == summary


def test_workers_make_the_same_set(tmp_path):
    paths = [raw(tmp_path / "in", count=3, start=10 * i, name=f"raw{i}") for i in range(3)]
    serial = prepare(paths, tmp_path / "serial", config=CONFIG)
    parallel = prepare(paths, tmp_path / "parallel", config=CONFIG, workers=2)
    assert (parallel.read, parallel.written) == (serial.read, serial.written) == (9, 9)
    assert texts(tmp_path / "parallel") == texts(tmp_path / "serial")


def test_the_fraction_of_broken_documents_needs_enough_documents(tmp_path):
    """Two broken of the first three are tolerated if the others are valid; a fraction of 0 tolerates none."""
    first = raw(tmp_path / "in", count=1, extra=[pair("gone"), pair("lost")], name="raw0")
    second = raw(tmp_path / "in", count=40, start=1, name="raw1")
    few = dataclasses.replace(CONFIG, max_rejected=0.05)
    assert prepare([first, second], tmp_path / "out", config=few).written == 41
    third = raw(tmp_path / "in", count=40, start=50, extra=[pair("gone")], name="raw2")
    with pytest.raises(UserError, match="1 of 41 documents are broken"):
        prepare([third], tmp_path / "none", config=dataclasses.replace(CONFIG, max_rejected=0.0))


def test_files_with_the_same_name_have_different_keys(tmp_path):
    paths = [raw(tmp_path / "in" / f"{i}" / "deep", count=0, extra=[pair("gone")]) for i in range(2)]
    paths.append(raw(tmp_path / "in", start=5))
    summary = prepare(paths, tmp_path / "out", config=dataclasses.replace(CONFIG, max_rejected=0.5))
    assert summary.written == 5
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["key"] for reject in rejects] == ["0/deep/raw.jsonl:1", "1/deep/raw.jsonl:1"]


def test_the_contact_sheet_displays_stored_documents(tmp_path):
    path = raw(tmp_path / "in", extra=[pair("x", text="<script>alert(1)</script>")], images={"x.png": color_image(9)})
    prepare([path], tmp_path / "out", config=CONFIG)
    sheet = (tmp_path / "out" / "samples.html").read_text()
    assert sheet.count("data:image/png") == 6
    assert "number 3" in sheet
    assert "&lt;script&gt;" in sheet
    assert "<script>" not in sheet


def test_other_input_or_settings_are_refused(tmp_path):
    path = raw(tmp_path / "in")
    prepare([path], tmp_path / "out", config=CONFIG)
    with pytest.raises(UserError, match="other input or with other settings"):
        prepare([path], tmp_path / "out", config=dataclasses.replace(CONFIG, image_size=16))
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="is not a prepared set; choose another output"):
        prepare([path], tmp_path / "mine", config=CONFIG)


def test_no_usable_documents(tmp_path):
    path = write_jsonl(tmp_path / "in", "raw", [pair(0, text=" ")], {"0.png": color_image(0)})
    with pytest.raises(UserError, match="None of the 1 documents"):
        prepare([path], tmp_path / "out", config=CONFIG)
    with pytest.raises(UserError, match="no source 'json'"):
        dataclasses.replace(CONFIG, source="json")


@pytest.mark.e2e
def test_kill_and_restart(tmp_path):
    """kill -9 at any time leaves no set or the complete set; the next call completes it."""
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


def test_command(tmp_path, capsys):
    raw(tmp_path / "in", extra=[pair("long")], images={"long.png": np.zeros((4, 40, 3), np.uint8)})
    main(
        ["--source=jsonl", f"--input={tmp_path}/in/*.jsonl", f"--output={tmp_path}/out", "--image-size=8",
         "--min-side=4", "--store=raw"]
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "5 of 6 documents, 5 images" in out
    assert "dropped: 1 x the aspect ratio of an image is too large" in out
    assert len(PreparedSet(tmp_path / "out")) == 5
    for arguments, reason in [
        (["--source=jsonl", "--input=nothing*", "--output=x"], "No file matches nothing"),
        (["--source=nope", f"--input={tmp_path}/in/*.jsonl", "--output=x"], "no source 'nope'"),
        (["--source=jsonl", f"--input={tmp_path}/in/*.jsonl", "--output=x", "--media=nowhere"], "is neither a folder"),
    ]:
        with pytest.raises(UserError, match=reason):
            main(arguments)


def test_videos_are_stored_as_frames(tmp_path):
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


def test_images_with_exif_rotation_are_stored_upright(tmp_path):
    stored = PIL.Image.fromarray(np.concatenate([np.full((8, 8, 3), v, np.uint8) for v in (0, 255)], axis=1))
    exif = PIL.Image.Exif()
    exif[0x112] = 3
    path = raw(tmp_path / "in", count=0, extra=[pair("x")])
    stored.save(tmp_path / "in" / "x.png", exif=exif)
    prepare([path], tmp_path / "out", config=CONFIG)
    upright = decode(PreparedSet(tmp_path / "out")[0].segments[0].data)
    assert upright[4, 0, 0] > 200 > 50 > upright[4, 7, 0]


def test_images_that_a_page_lost_are_counted_separately(tmp_path):
    (tmp_path / "images").mkdir()
    PIL.Image.fromarray(color_image(1)).save(tmp_path / "images" / "here.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"x")

    def page(n, *names):
        images = [{"image_name": f"{name}.png", "matched_text_index": 0, "matched_sim": 0.5} for name in names]
        return {"text_list": [f"page {n}"], "image_info": images}

    pages = [page(0, "here", "gone"), page(1, "here", "broken"), page(2, "gone"), page(3, "broken"), page(4, "here")]
    path = tmp_path / "docs_shard_0_v3.jsonl"
    path.write_text("".join(json.dumps(p) + "\n" for p in pages))
    summary = prepare([path], tmp_path / "out", config=dataclasses.replace(CONFIG, source="mmc4", max_rejected=0.5))
    assert (summary.read, summary.written) == (5, 3)
    assert summary.outcomes == {"not downloaded": 1, "broken": 1}
    assert summary.lost_images == {
        "a media file is missing": 2,
        "the file is not an image of a known format": 2,
    }
    assert "5 read = 3 written + 1 not downloaded + 1 broken" in report(summary)
    assert "image lost: 2 x a media file is missing" in report(summary)


def test_failed_downloads_do_not_count_as_broken(tmp_path, cases, capsys):
    main(["--source=pairs_parquet", f"--input={cases / 'parquet_failed_downloads'}", f"--output={tmp_path / 'out'}"])
    out = capsys.readouterr().out
    assert "20 read = 13 written + 7 not downloaded" in out
    assert "not downloaded: 7 x failed to download" in out


def test_names_that_are_not_unicode(tmp_path):
    """In keys and details of rejects, and in keys of documents."""
    extra = [pair(0) | {"key": "half \ud800 pair"}, pair(1, image="half \ud800.png"), pair(2, text="half \ud800")]
    path = raw(tmp_path / "in", count=3, extra=extra)
    summary = prepare([path], tmp_path / "out", config=dataclasses.replace(CONFIG, max_rejected=0.9))
    assert summary.outcomes == {"broken": 2, "duplicate": 1}


def test_any_error_in_one_document_is_a_reject(tmp_path, monkeypatch):
    """Except a lack of memory, and mistakes of the user."""
    path = raw(tmp_path / "in")
    real_clean = part_files.clean

    def failing(error):
        return lambda d, c: real_clean(d, c) if "raw.jsonl:2" not in d.key else (_ for _ in ()).throw(error)

    monkeypatch.setattr(part_files, "clean", failing(KeyError("x")))
    summary = prepare([path], tmp_path / "out", config=CONFIG)
    assert summary.reasons == {"broken": {"the document has an unexpected form": 1}}
    for error in (MemoryError(), UserError("no space")):
        monkeypatch.setattr(part_files, "clean", failing(error))
        with pytest.raises(type(error)):
            prepare([path], tmp_path / "other", config=CONFIG)


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("record_text=5", "the text is too long"),
        ("record_images=1", "the record has too many images"),
        ("image_side=7", "the image has too many pixels"),
        ("image_pixels=63", "the image has too many pixels"),
        ("line_bytes=60", "the line is too long"),
        ("file_bytes=50", "a file is too large"),
        ("record_seconds=1e-12", "decoding takes too long"),
    ],
)
def test_limits_are_options_of_the_command(tmp_path, limit, reason, capsys):
    images = [{"image": "0.png"}] * 2
    record = {"layout": "page", "segments": [*images, {"text": "a long text"}]}
    path = write_jsonl(tmp_path / "in", "raw", [record], {"0.png": color_image(0)})
    arguments = ["--source=jsonl", f"--input={path}", "--image-size=4", "--min-side=4"]
    with pytest.raises(UserError, match=reason):
        main([*arguments, f"--output={tmp_path / 'out'}", f"--limit={limit}"])
    main([*arguments, f"--output={tmp_path / 'out'}"])
    assert "1 of 1 documents" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-rejected=nan"], ["--max-rejected=-1"], ["--max-rejected=2"], ["--max-aspect=nan"], ["--max-aspect=0"],
        ["--min-similarity=nan"], ["--min-side=-1"], ["--frames=0"], ["--image-size=-5"], ["--image-size=1000000"],
        ["--workers=-1"], ["--split="], ["--limit=image_side=0"], ["--limit=image_side=x"], ["--limit=sides=1"],
        ["--limit=record_seconds=nan"],
    ],
)  # fmt: skip
def test_options_out_of_range(tmp_path, arguments):
    path = raw(tmp_path / "in", count=1)
    with pytest.raises(UserError):
        main(["--source=jsonl", f"--input={path}", f"--output={tmp_path / 'out'}", *arguments])
    assert not list(tmp_path.glob("*out*"))
