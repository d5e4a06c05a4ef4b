"""Files that a data set names are found in its folder or tar, and nowhere else."""

import json
import os

import pytest

from emu_jax.data.images import DecodeError, decode
from emu_jax.data.sources import Rejected
from emu_jax.errors import UserError
from tests.data.sources.makers import COUNT, image_file, make_llava, make_mmc4, name_of, numbers, read, tar_of, words


def test_media_folder(tmp_path):
    path = make_llava(tmp_path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert all(isinstance(f, Rejected) and "is missing" in f.reason for f in read("llava", path))
    assert len([f for f in read("llava", path, media=tmp_path / "elsewhere") if not isinstance(f, Rejected)]) == COUNT


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "", "a\x00b"])
def test_untrusted_file_names_stay_in_their_folder(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(image_file(0))
    (tmp_path / "set").mkdir()
    segments = [{"image": name}, {"text": "x"}]
    path = tmp_path / "set" / "d.jsonl"
    path.write_text(json.dumps({"layout": "pair", "segments": segments}))
    (found,) = read("jsonl", path)
    assert "is not accepted" in found.reason


@pytest.mark.parametrize("prefix", ["", "./", "images/", "a/b/"])
def test_media_in_a_tar(tmp_path, prefix):
    """Members are found by their complete name or its end, in a tar next to the file or in `media`."""
    path = make_mmc4(tmp_path)
    images = sorted((tmp_path / "images").iterdir())
    members = [(prefix + file.name, file.read_bytes()) for file in images]
    adjacent = tar_of(path.with_suffix(".tar"), members)
    for file in images:
        file.unlink()
    assert [numbers(f) for f in read("mmc4", path)] == [({n}, {n}) for n in range(COUNT)]
    elsewhere = adjacent.rename(tmp_path / "elsewhere.tar")
    assert all(isinstance(f, Rejected) for f in read("mmc4", path))
    assert [numbers(f) for f in read("mmc4", path, media=elsewhere)] == [({n}, {n}) for n in range(COUNT)]


def test_ambiguous_members_are_rejected(tmp_path):
    path = make_llava(tmp_path)
    members = [(f"{folder}/{name_of(0)}.png", image_file(n)) for n, folder in enumerate("ab")]
    tar = tar_of(
        tmp_path / "m.tar", [*members, (f"{name_of(1)}.png", image_file(1)), (f"b/{name_of(1)}.png", image_file(5))]
    )
    found = read("llava", path, media=tar)
    assert [isinstance(f, Rejected) for f in found] == [True, False, *[True] * (COUNT - 2)]
    assert numbers(found[1]) == ({1}, {1})


def test_an_invalid_media_tar_is_a_user_error(tmp_path):
    path = make_llava(tmp_path)
    (tmp_path / "m.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"m\.tar is not a tar file"):
        read("llava", path, media=tmp_path / "m.tar")


def one(path, name, **options):
    """Return the only document or reject of a file with one image and one text."""
    path.mkdir(exist_ok=True)
    (path / "d.jsonl").write_text(json.dumps({"layout": "pair", "segments": [{"image": name}, {"text": words(1)}]}))
    (found,) = read("jsonl", path / "d.jsonl", **options)
    return found


@pytest.mark.parametrize(
    ("member", "name", "matches"),
    [
        ("coco/1.png", "coco/1.png", True),
        ("images/coco/1.png", "coco/1.png", True),
        ("coco/1.png", "1.png", True),
        ("gqa/1.png", "coco/1.png", False),
        ("xcoco/1.png", "coco/1.png", False),
        ("1.png", "coco/1.png", False),
    ],
)
def test_members_are_matched_by_the_complete_name(tmp_path, member, name, matches):
    tar = tar_of(tmp_path / "m.tar", [(member, image_file(1))])
    found = one(tmp_path / "set", name, media=tar)
    assert isinstance(found, Rejected) != matches


def test_links_out_of_the_media_folder_are_refused(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "1.png").write_bytes(image_file(1))
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret" / "1.png")
    (folder / "sub").symlink_to(tmp_path / "secret")
    (folder / "2.png").write_bytes(image_file(2))
    (folder / "inside.png").symlink_to(folder / "2.png")
    for name in ("link.png", "sub/1.png"):
        assert one(tmp_path / "set", name, media=folder).reason == "a link leads out of the media folder"
    assert numbers(one(tmp_path / "set", "inside.png", media=folder)) == ({1}, {2})
    (tmp_path / "alias").symlink_to(folder)
    assert numbers(one(tmp_path / "set", "2.png", media=tmp_path / "alias")) == ({1}, {2})


def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "1.png")
    assert one(tmp_path, "1.png").reason == "not a regular file"
    os.mkfifo(tmp_path / "d2.jsonl")
    with pytest.raises(UserError, match="not a regular file"):
        read("jsonl", tmp_path / "d2.jsonl")
    with pytest.raises(DecodeError, match="not a regular file"):
        decode(tmp_path / "1.png")


def test_absolute_names_inside_the_media_folder(tmp_path):
    (tmp_path / "media" / "a").mkdir(parents=True)
    (tmp_path / "media" / "a" / "1.png").write_bytes(image_file(1))
    name = str(tmp_path / "media" / "a" / "1.png")
    assert numbers(one(tmp_path / "set", name, media=tmp_path / "media")) == ({1}, {1})
    assert one(tmp_path / "set", name).reason == "a file name is not accepted"
    assert numbers(one(tmp_path / "set", "media/a/1.png", media=tmp_path / "media")) == ({1}, {1})


def test_a_damaged_or_truncated_media_tar(tmp_path):
    members = [(f"{n}.png", image_file(n)) for n in range(5)]
    tar = tar_of(tmp_path / "m.tar", members)
    intact = tar.read_bytes()
    tar.write_bytes(intact[:2048] + bytes(512) + intact[2560:])
    with pytest.raises(UserError, match=r"m\.tar is damaged at byte 2048"):
        one(tmp_path / "set", "1.png", media=tar)
    tar.write_bytes(intact[: 4 * 1024 + 512 + 10])
    with pytest.raises(UserError, match="or is truncated"):
        one(tmp_path / "set", "1.png", media=tar)


def test_a_name_that_is_too_long_is_missing(tmp_path):
    assert one(tmp_path, "x" * 5000 + ".png").reason == "a media file is missing"
