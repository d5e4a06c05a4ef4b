"""Every pattern of `--input` matches files, or the command says so."""

import pytest

from emu_jax.cli.prepare_data import main
from emu_jax.data.sources.input_files import expand_inputs, missing_shards
from emu_jax.errors import UserError
from tests.data.sources.makers import make_pairs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [
        *(f"{n:05d}.tar" for n in (0, 1, 2, 10)),
        "00000.parquet",
        "00000_stats.json",
        "a.tar.gz",
        ".hidden.tar",
    ]:
        (tmp_path / name).write_bytes(b"")
    for name in ("run [old]", "empty", "{0..1}"):
        (tmp_path / name).mkdir()
    (tmp_path / "run [old]" / "x.tar").write_bytes(b"")
    (tmp_path / "{0..1}" / "y.tar").write_bytes(b"")
    return tmp_path


def names(*patterns):
    return [str(path) for path in expand_inputs(patterns, suffixes=(".tar", ".tar.gz", ".tgz"))]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{00000..00002}.tar", ["00000.tar", "00001.tar", "00002.tar"]),
        ("{00002..00000}.tar", ["00000.tar", "00001.tar", "00002.tar"]),
        ("{00000,00010}.tar", ["00000.tar", "00010.tar"]),
        ("0000{0..2}.tar", ["00000.tar", "00001.tar", "00002.tar"]),
        ("000{00..02..1}.tar", None),
        ("{00000..00001}.{tar,tar}", ["00000.tar", "00001.tar"]),
        ("0000[0-1].tar", ["00000.tar", "00001.tar"]),
        ("*.tar.gz", ["a.tar.gz"]),
        ("run [old]", ["run [old]/x.tar"]),
        ("run [old]/x.tar", ["run [old]/x.tar"]),
        ("run [old]/*.tar", None),
        ("run*", ["run [old]/x.tar"]),
        ("{0..1}/y.tar", ["{0..1}/y.tar"]),
        ("**/x.tar", ["run [old]/x.tar"]),
        (".", ["00000.tar", "00001.tar", "00002.tar", "00010.tar", "a.tar.gz"]),
    ],
)
def test_patterns(folder, pattern, expected):
    if expected is None:
        with pytest.raises(UserError, match=r"No file matches|do not exist"):
            names(pattern)
    else:
        assert names(pattern) == expected


def test_home(folder):
    assert names("~/00000.tar", "~/0000[1-2].tar") == [str(folder / f"0000{n}.tar") for n in range(3)]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("typo.tar", "No file matches typo.tar"),
        ("*.zip", r"No file matches \*.zip"),
        ("{00000..00003}.tar", "1 of 4 files of {00000..00003}.tar do not exist: 00003.tar"),
        ("empty", "The folder empty has no files that end with .tar or .tar.gz or .tgz"),
        ("gs://bucket/{00000..00003}.tar", "is a URL; mount the bucket or copy the files"),
        ("x" * 5000, "cannot be read"),
        ("{0..99999999}.tar", "more than"),
    ],
)
def test_each_pattern_must_match(folder, pattern, reason):
    with pytest.raises(UserError, match=reason):
        names("00000.tar", pattern)


def test_gaps_between_shards(folder):
    assert missing_shards(expand_inputs(["*.tar"], suffixes=())) == [f"./{n:05d}.tar" for n in range(3, 10)]
    shards = [folder / f"docs_shard_{n}_v3.jsonl" for n in (8, 9, 11)]
    assert missing_shards(shards) == [str(folder / "docs_shard_10_v3.jsonl")]
    assert missing_shards([folder / "part-00-of-03.tar", folder / "part-02-of-03.tar"]) == [
        str(folder / "part-01-of-03.tar")
    ]
    assert missing_shards([folder / "2014.json", folder / "99999999999999.json", folder / "a.json"]) == []


def test_the_command_lists_gaps(tmp_path, capsys):
    shard = make_pairs(tmp_path)
    shard.rename(tmp_path / "00003.tar")
    make_pairs(tmp_path)
    main(["--source=pairs", f"--input={tmp_path}", f"--output={tmp_path / 'out'}", "--image-size=8", "--min-side=4"])
    captured = capsys.readouterr()
    assert f"gaps in the numbers of the input files: {tmp_path / '00001.tar'}, {tmp_path / '00002.tar'}" in captured.err
    assert "12 read = 6 written + 6 duplicate" in captured.out
