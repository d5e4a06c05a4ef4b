"""Atomic writes and readers that fail with one clear line."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emu_jax.errors import UserError
from emu_jax.io.files import (
    atomic_file,
    atomic_folder,
    file_errors,
    is_file,
    list_files,
    read_json,
    read_text,
    temporary_folder,
    write_bytes,
    write_json,
    write_text,
)


def test_a_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "new" / "notes.txt"
    write_text(path, "one")
    with contextlib.suppress(KeyError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "one"
    write_text(path, "two")
    assert os.listdir(path.parent) == ["notes.txt"]
    assert path.read_text() == "two"


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    script = f"""
import os
from emu_jax.io.files import atomic_file
with atomic_file({str(path)!r}) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert path.read_text() == "old"


def test_a_folder_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "set"
    with atomic_folder(target) as folder:
        (folder / "records").write_text("1")
        assert not target.exists()
    assert (target / "records").read_text() == "1"
    assert os.listdir(tmp_path) == ["set"]


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "set").mkdir()
    with atomic_folder(tmp_path / "set") as folder:
        (folder / "records").write_text("1")
    assert (tmp_path / "set" / "records").exists()


def test_a_folder_with_files_is_never_overwritten(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_text("1")
    with pytest.raises(UserError, match="exists already"), atomic_folder(tmp_path / "set"):
        pass
    assert os.listdir(tmp_path / "set") == ["mine"]


def test_a_folder_is_replaced_when_the_new_one_is_complete(tmp_path):
    target = tmp_path / "decoder"
    with atomic_folder(target, replace=True) as folder:
        (folder / "first").write_text("1")
    with contextlib.suppress(RuntimeError), atomic_folder(target, replace=True) as folder:
        (folder / "second").write_text("2")
        raise RuntimeError
    assert os.listdir(target) == ["first"]
    with atomic_folder(target, replace=True) as folder:
        (folder / "third").write_text("3")
    assert os.listdir(target) == ["third"]
    assert os.listdir(tmp_path) == ["decoder"]


def test_a_failed_write_leaves_no_parent_folders(tmp_path):
    with contextlib.suppress(RuntimeError), atomic_folder(tmp_path / "a" / "b" / "set") as folder:
        (folder / "records").write_text("1")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_temporary_folders_of_killed_processes_are_removed(tmp_path):
    script = f"""
import os
from pathlib import Path
from emu_jax.io.files import temporary_folder
with temporary_folder(Path({str(tmp_path / "set")!r})) as folder:
    (folder / "half").write_text("1")
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert len(os.listdir(tmp_path)) == 1
    with temporary_folder(tmp_path / "set") as other, temporary_folder(tmp_path / "set"):
        assert other.is_dir()  # its process is running
        assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "write", [lambda p: write_text(p, "x"), lambda p: write_bytes(p, b"x"), lambda p: write_json(p, 1)]
)
def test_failures_of_a_write_are_one_line(tmp_path, write):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"Cannot write .*(Not a directory|File exists)"):
        write(tmp_path / "file" / "inside")
    with pytest.raises(UserError, match="is a folder"):
        write(tmp_path)
    with pytest.raises(UserError, match="too long"):
        write(tmp_path / ("x" * 300))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line():
    with pytest.raises(UserError, match="No space left"), file_errors("write", "/dev/full"):
        Path("/dev/full").write_text("x")


def test_failures_of_a_read_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read .*No such file"):
        read_text(tmp_path / "absent")
    with pytest.raises(UserError, match="Is a directory"):
        read_json(tmp_path)
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not a UTF-8"):
        read_text(tmp_path / "latin")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "bad.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "deep.json")


def test_json_round_trip(tmp_path):
    value = {"text": "größe", "list": [1, 2.5, None]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value == json.loads((tmp_path / "a.json").read_text())


def test_a_killed_writer_leaves_nothing_behind_after_the_next_start(tmp_path):
    script = f"""
import os, signal
from emu_jax.io.files import atomic_file
with atomic_file({str(tmp_path / "a.json")!r}) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    script = f"from emu_jax.io.files import write_text; write_text({str(tmp_path / 'b.json')!r}, 'x')"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_questions_about_files_that_the_system_refuses(tmp_path):
    assert not is_file(tmp_path / "missing")
    assert not is_file("nul\0")
    assert list_files(tmp_path / "missing") == []
    with pytest.raises(UserError, match="File name too long"):
        is_file(tmp_path / ("n" * 300))
