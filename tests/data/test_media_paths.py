"""One rule decides which strings of a prompt are files."""

from pathlib import Path

import numpy as np
import pytest

from emu_jax.data.images import encode_png
from emu_jax.data.media_paths import is_video, named_file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jfif", "my photo.jpg", "scan", "a b", "clip.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "photo.jfif", "my photo.jpg", "scan", "a b", "clip.mp4", "notes.txt",  # exist
        "missing.jpg", "sub/missing.MP4", "missing.avif",  # end like media, without white space
    ],
)  # fmt: skip
def test_file_names(folder, text):
    assert named_file(text) == Path(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "a cat", "missing", "missing.txt", "folder", "Look at missing.jpg", "There are two dogs.", "a\ncat.jpg",
        " scan", "scan ", "a\x00.jpg", "x" * 5000, "x" * 300, ".jpg is a format",
    ],
)  # fmt: skip
def test_texts(folder, text):
    assert named_file(text) is None


def test_videos_are_recognized_by_name_or_content(tmp_path, cases):
    assert is_video("a.MP4")
    assert not is_video("a.jpg")
    (tmp_path / "image").write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8)))
    (tmp_path / "video").write_bytes((cases / "rotated_video" / "plain.mp4").read_bytes())
    assert not is_video(tmp_path / "image")
    assert is_video(tmp_path / "video")
