"""Files that a data set names are found in its folder or tar, and nowhere else."""

import json

import pytest

from emu_jax.data.sources import Rejected
from emu_jax.errors import UserError
from tests.data.sources.makers import COUNT, image_file, make_llava, make_mmc4, name_of, numbers, read, tar_of


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
