"""Config files with errors: one line with the file, the line and the message."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu_jax.cli.config_file import read_config
from emu_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef get_config(:\n", "run.py, line 2: invalid syntax"),
        ("def get_config():\n    return foo\n", "run.py, line 2: NameError: name 'foo' is not defined"),
        ("import no_such_module\n", "run.py, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("from configs.common import no_such_name\n", "run.py, line 1: ImportError"),
        ("x = 1\n", "run.py has no function get_config"),
        ("get_config = 3\n", "run.py: TypeError"),
        ("def get_config():\n    return {'steps': 1}\n", "must return a ConfigDict, not dict"),
        ("def get_config():\n    pass\n", "must return a ConfigDict, not NoneType"),
        ("def get_config():\n    raise SystemExit(3)\n", "run.py, line 2: SystemExit: 3"),
        ("def get_config():\n    return 1 / 0\n", "run.py, line 2: ZeroDivisionError"),
    ],
)
def test_errors_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.py").write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(str(tmp_path / "run.py"))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe")
    (tmp_path / "folder.py").mkdir()
    for name, message in (
        ("bytes.py", "not a UTF-8 text file"),
        ("folder.py", "no config file"),
        ("n" * 300, "File name too long"),
    ):
        with pytest.raises(UserError, match=message):
            read_config(str(tmp_path / name))


def test_an_argument_that_the_file_does_not_take(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("def get_config():\n    pass\n")
    with pytest.raises(UserError, match=r"run\.py: TypeError: get_config"):
        read_config(f"{tmp_path / 'run.py'}:argument")


def test_configs_of_the_repository_are_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_config("configs/tiny.py", ["--config.train.steps=7"]).train.steps == 7
    with pytest.raises(UserError, match=rf"configs/tinny.py in {tmp_path} or .*; did you mean .*configs/tiny.py\?"):
        read_config("configs/tinny.py")
