"""Files that a set names are found in its folder or tar, and nowhere else."""

import json

import pytest

from emu_jax.data.sources import Rejected
from emu_jax.errors import UserError
from tests.data.sources.makers import COUNT, make_llava, make_mmc4, name_of, numbers, picture, read, tar_of


def test_media_folder(tmp_path):
    path = make_llava(tmp_path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert all(isinstance(f, Rejected) and "is not there" in f.reason for f in read("llava", path))
    assert len([f for f in read("llava", path, media=tmp_path / "elsewhere") if not isinstance(f, Rejected)]) == COUNT


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "", "a\x00b"])
def test_a_stranger_s_file_names_stay_in_their_folder(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(picture(0))
    (tmp_path / "set").mkdir()
    segments = [{"image": name}, {"text": "x"}]
    path = tmp_path / "set" / "d.jsonl"
    path.write_text(json.dumps({"layout": "pair", "segments": segments}))
    (found,) = read("jsonl", path)
    assert "is not taken" in found.reason


@pytest.mark.parametrize("prefix", ["", "./", "images/", "a/b/"])
def test_media_in_a_tar(tmp_path, prefix):
    """Named whole or by the last part of the name, beside the file or where `media` says."""
    path = make_mmc4(tmp_path)
    images = sorted((tmp_path / "images").iterdir())
    members = [(prefix + file.name, file.read_bytes()) for file in images]
    beside = tar_of(path.with_suffix(".tar"), members)
    for file in images:
        file.unlink()
    assert [numbers(f) for f in read("mmc4", path)] == [({n}, {n}) for n in range(COUNT)]
    elsewhere = beside.rename(tmp_path / "elsewhere.tar")
    assert all(isinstance(f, Rejected) for f in read("mmc4", path))
    assert [numbers(f) for f in read("mmc4", path, media=elsewhere)] == [({n}, {n}) for n in range(COUNT)]


def test_two_members_of_one_name_are_neither(tmp_path):
    path = make_llava(tmp_path)
    members = [(f"{folder}/{name_of(0)}.png", picture(n)) for n, folder in enumerate("ab")]
    tar = tar_of(tmp_path / "m.tar", [*members, (f"{name_of(1)}.png", picture(1)), (f"b/{name_of(1)}.png", picture(5))])
    found = read("llava", path, media=tar)
    assert [isinstance(f, Rejected) for f in found] == [True, False, *[True] * (COUNT - 2)]
    assert numbers(found[1]) == ({1}, {1})


def test_a_tar_of_media_that_is_none_is_the_user_s_to_mend(tmp_path):
    path = make_llava(tmp_path)
    (tmp_path / "m.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"m\.tar is not a tar file"):
        read("llava", path, media=tmp_path / "m.tar")
