"""`python -m emu_jax`: its commands, help, errors and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from emu_jax import __main__, cli
from emu_jax.cli.arguments import ArgumentParser, at_least
from emu_jax.errors import UserError

if TYPE_CHECKING:
    from tests.conftest import Command


SLOW_COMMANDS = ("prepare-data",)  # imports everything before it parses its arguments
QUICK_COMMANDS = tuple(name for name in cli.commands() if name not in SLOW_COMMANDS)


def replace_commands(monkeypatch: pytest.MonkeyPatch, main: object) -> None:
    """Make every command run `main`."""
    monkeypatch.setattr(cli, "load", lambda name: types.SimpleNamespace(main=main))


def test_every_command_has_a_line_of_help() -> None:
    table = cli.commands()
    assert "arguments" not in table, "a module without main() is not a command"
    assert [name for name, line in table.items() if len(line) < 10] == []


def test_every_command_imports_and_has_a_docstring() -> None:
    for name in cli.commands():
        module = cli.load(name)
        assert callable(module.main)
        assert module.__doc__


def test_help_lists_the_commands(run_command: Command) -> None:
    done = run_command("--help")
    assert done.returncode == 0
    assert [name for name in cli.commands() if f"  {name} " not in done.stdout] == []


def test_without_a_command_the_list_is_printed(run_command: Command) -> None:
    done = run_command()
    assert done.returncode == 2
    assert done.stdout.startswith("usage: python -m emu_jax COMMAND")


def test_an_unknown_command_names_the_nearest(run_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "commands", lambda: {"prepare-data": "...", "chat": "..."})
    with pytest.raises(UserError, match="no command 'prepare_dta'; did you mean prepare-data"):
        cli.load("prepare_dta")
    with pytest.raises(UserError, match="the commands are prepare-data, chat"):
        cli.load("xyzzy")
    done = run_command("nonsense")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no command 'nonsense'")
    assert done.stderr.count("\n") == 1


def test_the_words_after_the_command_are_passed_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    replace_commands(monkeypatch, seen.append)
    assert __main__.main(["chat", "--checkpoint", "runs/demo"]) == 0
    assert seen == [["--checkpoint", "runs/demo"]]


def test_a_user_error_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> None:
        raise UserError("photo.jpg is a text file;\n  name an image.")

    replace_commands(monkeypatch, main)
    assert __main__.main(["generate"]) == 2
    assert capsys.readouterr().err == "error: photo.jpg is a text file; name an image.\n"


def test_ctrl_c_is_one_line_and_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        raise KeyboardInterrupt

    replace_commands(monkeypatch, main)
    assert __main__.main(["train"]) == 130
    assert capsys.readouterr().err.split("\n") == ["", "interrupted", ""]


def test_ctrl_c_during_an_import_is_one_line_and_code_130(root: Path) -> None:
    """The import of a C extension would turn KeyboardInterrupt into ImportError."""
    script = """
import os, signal, sys
from emu_jax import __main__, cli
def load(name):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("while initializing the extension")
cli.load = load
sys.exit(__main__.main(["train"]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")


def test_other_exceptions_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(argv: list[str]) -> None:
        raise ZeroDivisionError

    replace_commands(monkeypatch, main)
    with pytest.raises(ZeroDivisionError):
        __main__.main(["train"])


def test_the_parser_raises_user_errors_and_prints_the_docstring_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser("emu_jax.cli.prepare_data", "Writes records.\n\n    prepare-data --output=DIR")
    parser.add_argument("--output", required=True)
    assert parser.prog == "python -m emu_jax prepare-data"
    with pytest.raises(UserError, match="--output"):
        parser.parse_args([])
    with pytest.raises(UserError, match="unrecognized arguments: --outptu=x"):
        parser.parse_args(["--output=x", "--outptu=x"])
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help"])
    assert end.value.code == 0
    assert "    prepare-data --output=DIR" in capsys.readouterr().out


def test_integers_have_a_minimum() -> None:
    parser = ArgumentParser("emu_jax.cli.compile", "Compile.")
    parser.add_argument("--rows", type=at_least(1))
    assert parser.parse_args(["--rows=3"]).rows == 3
    with pytest.raises(UserError, match="--rows: must be at least 1, not 0"):
        parser.parse_args(["--rows=0"])
    with pytest.raises(UserError, match="--rows: invalid integer value: 'many'"):
        parser.parse_args(["--rows=many"])


def test_words_that_set_config_fields_are_separated_from_arguments() -> None:
    parser = ArgumentParser("emu_jax.cli.train", "Train.")
    parser.add_config_argument()
    parser.add_argument("--workdir")
    overrides = ["--config.train.steps=3", "--config.tokenizer", "t.model", "--noconfig.train.profile"]
    arguments, rest = parser.parse_config_args(["--config=configs/tiny.py:both", *overrides, "--workdir=runs/tiny"])
    assert (arguments.config, arguments.workdir, rest) == ("configs/tiny.py:both", "runs/tiny", overrides)
    with pytest.raises(UserError, match="unknown argument --wrokdir; did you mean --workdir"):
        parser.parse_config_args(["--config=a.py", "--wrokdir=x"])
    with pytest.raises(UserError, match=r"unexpected argument 'extra'; set config fields as in --config\.train\.steps"):
        parser.parse_config_args(["--config=a.py", "extra"])
    with pytest.raises(UserError, match="required: --config"):
        parser.parse_config_args(["--workdir=x"])


@pytest.mark.parametrize("name", QUICK_COMMANDS)
def test_help_imports_nothing_heavy(root: Path, name: str) -> None:
    script = f"""
import sys
from emu_jax import __main__
try:
    __main__.main([{name!r}, "--help"])
except SystemExit:
    pass
heavy = {{"jax", "numpy", "absl", "tensorboardX"}} & set(sys.modules)
print(len(sys.modules), *heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    number, *heavy = done.stdout.splitlines()[-1].split()
    assert heavy == []
    assert int(number) < 250


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is on Linux only")
@pytest.mark.parametrize("setting", [None, "glibc.malloc.check=0"])
def test_a_process_restarts_once_with_huge_pages_unless_the_user_set_them(root: Path, setting: str | None) -> None:
    script = """
from pathlib import Path
from emu_jax.__main__ import use_huge_pages
print("started", flush=True)
use_huge_pages()
print(Path("/proc/self/environ").read_text().replace(chr(0), chr(10)))
"""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if setting is not None:
        environment["GLIBC_TUNABLES"] = setting
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("started") == (2 if setting is None else 1)
    assert f"GLIBC_TUNABLES={setting or 'glibc.malloc.hugetlb=1'}" in done.stdout.splitlines()
