"""A damaged part of a tar costs the samples next to it, and never gives a wrong pair."""

import gzip
import io
import tarfile

import pytest

from emu_jax.data.sources import Rejected
from emu_jax.errors import UserError
from tests.data.sources.makers import COUNT, MAKERS, image_file, make_pairs, numbers, read, tar_of, words


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
        (("a.txt", b"a\0\0\0\0b"), "zero bytes"),
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


@pytest.mark.parametrize(
    ("file", "count"), [("00000.tar", 12), ("b_00001.tar", 12), ("c.tar.gz", 3), ("d_meta.tar", 4)]
)
def test_reported_tars_with_other_members(cases, file, count):
    found = read("pairs", cases / "tars_with_other_members" / file)
    assert len([f for f in found if not isinstance(f, Rejected)]) == count
    lost = [f.key for f in found if isinstance(f, Rejected)]
    assert lost == (["d_meta.tar:LICENSE"] if file == "d_meta.tar" else [])


OTHER_MEMBERS = [
    "._0.jpg", ".DS_Store", "./._0.txt", "a/._0.jpg", ".cache/0.jpg", "__meta__.json", "__MACOSX/0.jpg", "README",
]  # fmt: skip


@pytest.mark.parametrize("source", ["pairs", "storyboard"])
@pytest.mark.parametrize("other", OTHER_MEMBERS)
def test_members_that_belong_to_no_sample(tmp_path, source, other):
    """Also between the members of a sample."""
    name = {"pairs": ("0.jpg", "0.txt"), "storyboard": ("v.0.jpg", "v.0.txt")}[source]
    members = [(other, b"x"), (name[0], image_file(0)), (other, b"x"), (name[1], words(0).encode()), (other, b"x")]
    (found,) = read(source, tar_of(tmp_path / "0.tar", members))
    assert numbers(found) == ({0}, {0})


@pytest.mark.parametrize("source", ["pairs", "storyboard"])
@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar"])
def test_compressed_tars(tmp_path, source, suffix):
    plain = MAKERS[source](tmp_path)
    packed = tmp_path / f"packed{suffix}"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [numbers(f) for f in read(source, packed)] == [numbers(f) for f in read(source, plain)]
    packed.write_bytes(packed.read_bytes()[:-300])
    *good, last = read(source, packed)
    assert isinstance(last, Rejected)
    assert all(numbers(f) == ({n}, {n}) for n, f in enumerate(good))


def headers(data):
    """Return the offsets of the headers of a tar."""
    offsets, offset = [], 0
    while any(data[offset : offset + 512]):
        offsets.append(offset)
        size = tarfile.TarInfo.frombuf(data[offset : offset + 512], "utf-8", "strict").size
        offset += 512 + -(-size // 512) * 512
    return offsets


@pytest.mark.parametrize("source", ["pairs", "storyboard"])
@pytest.mark.parametrize("damage", [bytes(512), b"\xff" * 512, b"\0" * 100 + b"x" * 412])
def test_a_damaged_header_costs_the_samples_next_to_it(tmp_path, source, damage):
    """A zeroed header is not the end of the tar, and reading continues after it."""
    path = MAKERS[source](tmp_path)
    intact = path.read_bytes()
    offsets = headers(intact)
    for number, offset in enumerate(offsets):
        path.write_bytes(intact[:offset] + damage + intact[offset + 512 :])
        if number == 0 and any(damage):
            with pytest.raises(UserError, match="not a tar file"):
                read(source, path)
            continue
        found = read(source, path)
        good = [f for f in found if not isinstance(f, Rejected)]
        lost = [f for f in found if isinstance(f, Rejected)]
        assert len(good) + len(lost) in (COUNT - 1, COUNT), "the only member of a sample may be lost"
        assert len(lost) in (1, 2)
        assert all("lost" in f.reason for f in lost)
        assert all(numbers(f) == ({n}, {n}) for f in good for n in numbers(f)[0])
        assert len({f.key for f in found}) == len(found)


def test_only_zeros_up_to_the_end_are_an_end(tmp_path):
    """Two tars in one file: the zeros of the first end mark are followed by samples."""
    first = tar_of(tmp_path / "a.tar", [(f"{n}.{e}", d) for n in (1, 2) for e, d in parts(n)]).read_bytes()
    second = tar_of(tmp_path / "b.tar", [(f"{n}.{e}", d) for n in (3, 4) for e, d in parts(n)]).read_bytes()
    (tmp_path / "c.tar").write_bytes(first + second)
    found = read("pairs", tmp_path / "c.tar")
    assert [isinstance(f, Rejected) for f in found] == [False, True, True, False]
    (tmp_path / "c.tar").write_bytes(first + bytes(100_000))
    assert [numbers(f) for f in read("pairs", tmp_path / "c.tar")] == [({1}, {1}), ({2}, {2})]


def parts(n):
    return [("jpg", image_file(n)), ("txt", words(n).encode())]


def test_frames_with_the_same_number_are_ambiguous(tmp_path):
    members = [("v.1.png", image_file(1)), ("v.000001.png", image_file(2)), ("v.1.txt", words(1).encode())]
    (found,) = read("storyboard", tar_of(tmp_path / "0.tar", members))
    assert found.reason == "several files of the storyboard have the same number"


def test_names_that_are_not_utf8_are_no_end(tmp_path):
    path = tar_of(tmp_path / "t.tar", [(f"{n}.{e}", d) for n in (1, 2) for e, d in parts(n)])
    data = bytearray(path.read_bytes())
    for offset in headers(bytes(data))[:2]:
        data[offset] = 0xFF
        data[offset + 148 : offset + 156] = b"        "
        data[offset + 148 : offset + 156] = f"{sum(data[offset : offset + 512]):06o}\0 ".encode()
    path.write_bytes(data)
    assert [numbers(f) for f in read("pairs", path)] == [({1}, {1}), ({2}, {2})]
