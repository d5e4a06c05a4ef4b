"""What a damaged or odd tar costs: the sample it happened to, never a wrong pair."""

import io
import tarfile

import pytest

from emu_jax.data.sources import Rejected
from tests.data.sources.makers import make_pairs, numbers, picture, read, tar_of, words


def test_a_tar_cut_in_the_middle_loses_only_its_end(tmp_path):
    whole = make_pairs(tmp_path).read_bytes()
    for cut in range(600, len(whole) - 1024, 700):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        *good, last = read("pairs", tmp_path / "cut.tar")
        assert isinstance(last, Rejected)
        assert "lost" in last.reason
        assert [numbers(f) for f in good] == [({n}, {n}) for n in range(len(good))]


def test_members_out_of_place_never_pair_up(tmp_path):
    """Two texts for one picture, or parts of one sample apart: no guess is made."""
    path = tar_of(
        tmp_path / "t.tar",
        [("a.jpg", picture(1)), ("a.txt", b"one"), ("a.txt", b"two"), ("b.jpg", picture(2)), ("c.txt", b"three")],
    )
    reasons = [f.reason for f in read("pairs", path)]
    assert reasons == ["a file of the sample comes twice", "the sample has no text", "the sample has no image"]


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("a.txt", b" \n"), "text is empty"),
        (("a.txt", b"\xff\xfe"), "not UTF-8"),
        (("a.json", b"{"), "cannot be parsed"),
        (("a.json", b'{"a": 1, "a": 2}'), "same name twice"),
    ],
)
def test_reasons_are_told(tmp_path, member, reason):
    path = tar_of(tmp_path / "t.tar", [("a.jpg", picture(1)), member])
    (found,) = read("pairs", path)
    assert reason in found.reason
    assert found.key == "t.tar:a"


def test_a_member_that_claims_a_terabyte_is_not_unpacked(tmp_path):
    """A sparse member of a few bytes reads as all the zeros it claims."""
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (("a.jpg", picture(1)), ("a.txt", b"one")):
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
    assert "a member of 1099511627776 bytes" in last.reason


def test_pairs_under_folders_and_with_dots_in_front(tmp_path):
    members = [("./x/1.jpg", picture(1)), ("./x/1.txt", words(1).encode())]
    members += [("y/1.png", picture(2)), ("y/1.txt", words(2).encode())]
    path = tar_of(tmp_path / "t.tar", members)
    found = read("pairs", path)
    assert [numbers(f) for f in found] == [({1}, {1}), ({2}, {2})]
    assert len({f.key for f in found}) == 2
