"""A damaged part of a tar costs the samples next to it, and never gives a wrong pair."""

import io
import tarfile

import pytest

from emu_jax.data.sources import Rejected
from tests.data.sources.makers import image_file, make_pairs, numbers, read, tar_of, words


def test_a_truncated_tar_loses_only_its_end(tmp_path):
    intact = make_pairs(tmp_path).read_bytes()
    for size in range(600, len(intact.rstrip(b"\0")), 700):
        (tmp_path / "truncated.tar").write_bytes(intact[:size])
        *good, last = read("pairs", tmp_path / "truncated.tar")
        assert isinstance(last, Rejected)
        assert "lost" in last.reason
        assert [numbers(f) for f in good] == [({n}, {n}) for n in range(len(good))]


def test_members_in_the_wrong_order_never_form_a_pair(tmp_path):
    """Two texts for one image, or members of a sample that are not adjacent, are rejected."""
    path = tar_of(
        tmp_path / "t.tar",
        [("a.jpg", image_file(1)), ("a.txt", b"one"), ("a.txt", b"two"), ("b.jpg", image_file(2)), ("c.txt", b"three")],
    )
    reasons = [f.reason for f in read("pairs", path)]
    assert reasons == ["a file of the sample occurs twice", "the sample has no text", "the sample has no image"]


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("a.txt", b" \n"), "text is empty"),
        (("a.txt", b"\xff\xfe"), "not UTF-8"),
        (("a.json", b"{"), "cannot be parsed"),
        (("a.json", b'{"a": 1, "a": 2}'), "same name twice"),
    ],
)
def test_reasons(tmp_path, member, reason):
    path = tar_of(tmp_path / "t.tar", [("a.jpg", image_file(1)), member])
    (found,) = read("pairs", path)
    assert reason in found.reason
    assert found.key == "t.tar:a"


def test_a_member_of_a_terabyte_is_not_unpacked(tmp_path):
    """A sparse member of a few bytes would be read as a terabyte of zeros."""
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (("a.jpg", image_file(1)), ("a.txt", b"one")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("b.txt")
        info.size = 512
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "b.txt",
            "GNU.sparse.realsize": str(2**40),
        }
        archive.addfile(info, io.BytesIO(b"0\n".ljust(512, b"\0")))
    *_, last = read("pairs", path)
    assert isinstance(last, Rejected)
    assert last.detail == "b.txt: 1099511627776 bytes"


def test_pairs_in_folders_and_with_a_leading_dot(tmp_path):
    members = [("./x/1.jpg", image_file(1)), ("./x/1.txt", words(1).encode())]
    members += [("y/1.png", image_file(2)), ("y/1.txt", words(2).encode())]
    path = tar_of(tmp_path / "t.tar", members)
    found = read("pairs", path)
    assert [numbers(f) for f in found] == [({1}, {1}), ({2}, {2})]
    assert len({f.key for f in found}) == 2
