"""A preparation resumes with the same input and settings, and refuses others."""

import dataclasses
from pathlib import Path

import pytest

from emu_jax.data.limits import Limits
from emu_jax.data.prepare import part_files
from emu_jax.data.prepare.cleaning import Store
from emu_jax.data.prepare.job import prepare
from emu_jax.data.sources import ReadOptions
from emu_jax.errors import UserError
from tests.data.prepare.raw_files import CONFIG, pair, raw


def test_raising_max_rejected_continues_with_the_finished_parts(tmp_path, monkeypatch):
    paths = [raw(tmp_path / "in", start=10 * i, name=f"raw{i}", extra=[pair(f"gone{i}")]) for i in range(3)]
    with pytest.raises(UserError, match="raise --max-rejected to continue with the parts that are finished"):
        prepare(paths, tmp_path / "out", config=CONFIG)
    cleaned = []
    real_clean = part_files.clean
    monkeypatch.setattr(part_files, "clean", lambda d, c: cleaned.append(d.key) or real_clean(d, c))
    summary = prepare(paths, tmp_path / "out", config=dataclasses.replace(CONFIG, max_rejected=0.5))
    assert (summary.written, summary.outcomes, cleaned) == (15, {"broken": 3}, [])
    again = prepare(paths, tmp_path / "out", config=CONFIG)
    assert again == summary, "max_rejected is not part of the identity of a set"


def test_the_same_input_by_other_paths_continues(tmp_path, monkeypatch):
    """Relative, absolute, through a link, and after the folder has moved."""
    monkeypatch.chdir(tmp_path)
    raw(tmp_path / "in", name="raw0")
    (tmp_path / "media").mkdir()
    config = dataclasses.replace(CONFIG, options=ReadOptions(media=Path("in")))
    first = prepare([Path("in/raw0.jsonl")], Path("out"), config=config)
    absolute = dataclasses.replace(CONFIG, options=ReadOptions(media=tmp_path / "in"))
    assert prepare([tmp_path / "in" / "raw0.jsonl"], Path("out"), config=absolute) == first
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert prepare([Path("link/raw0.jsonl")], Path("out"), config=config) == first
    (tmp_path / "other").mkdir()
    (tmp_path / "in" / "raw0.jsonl").rename(tmp_path / "other" / "raw0.jsonl")
    assert prepare([Path("other/raw0.jsonl")], Path("out"), config=config) == first


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 16}, {"exact": True}, {"store": Store.RAW}, {"frames": 4}, {"min_side": 5}, {"max_aspect": 3.0},
        {"name": "x"}, {"options": ReadOptions(min_similarity=0.1)},
        {"options": ReadOptions(limits=Limits(record_text=9))},
    ],
)  # fmt: skip
def test_whatever_changes_records_is_part_of_the_identity(tmp_path, change):
    path = raw(tmp_path / "in", count=1)
    prepare([path], tmp_path / "out", config=CONFIG)
    with pytest.raises(UserError, match="other input or with other settings"):
        prepare([path], tmp_path / "out", config=dataclasses.replace(CONFIG, **change))


def test_changed_content_of_the_same_size_is_other_input(tmp_path):
    path = raw(tmp_path / "in", count=2)
    prepare([path], tmp_path / "out", config=CONFIG)
    path.write_text(path.read_text().replace("number 1", "number 7"))
    with pytest.raises(UserError, match="other input or with other settings"):
        prepare([path], tmp_path / "out", config=CONFIG)


def test_a_wrong_command_does_not_block_the_right_one(tmp_path):
    path = raw(tmp_path / "in")
    with pytest.raises(UserError, match="not a tar file"):
        prepare([path], tmp_path / "out", config=dataclasses.replace(CONFIG, source="pairs"))
    assert not list(tmp_path.glob(".out*"))
    with pytest.raises(UserError, match="A split is named by letters, digits and underscores, not 'a-b'"):
        prepare([path], tmp_path / "out", config=CONFIG, split="a-b")
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "settings.json").write_text('{"of": "a killed run without finished parts"}')
    assert prepare([path], tmp_path / "out", config=CONFIG).written == 5
