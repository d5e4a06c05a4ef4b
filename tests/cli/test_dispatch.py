"""`python -m emu_jax`: which commands there are, and what their ends look like from a shell."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from emu_jax import __main__, cli
from emu_jax.cli.arguments import ArgumentParser
from emu_jax.errors import UserError

if TYPE_CHECKING:
    from tests.conftest import Command


def becomes(monkeypatch: pytest.MonkeyPatch, main: object) -> None:
    """Makes every command run `main`."""
    monkeypatch.setattr(cli, "load", lambda name: types.SimpleNamespace(main=main))


def test_every_command_says_what_it_does() -> None:
    table = cli.commands()
    assert "arguments" not in table, "a module without main() is no command"
    assert [name for name, line in table.items() if len(line) < 10] == []


def test_every_command_imports_and_has_a_docstring_as_help() -> None:
    for name in cli.commands():
        module = cli.load(name)
        assert callable(module.main)
        assert module.__doc__


def test_help_lists_the_commands(run_command: Command) -> None:
    done = run_command("--help")
    assert done.returncode == 0
    assert [name for name in cli.commands() if f"  {name} " not in done.stdout] == []


def test_without_a_command_the_list_is_shown(run_command: Command) -> None:
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


def test_the_words_after_the_command_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    becomes(monkeypatch, seen.append)
    assert __main__.main(["chat", "--checkpoint", "runs/demo"]) == 0
    assert seen == [["--checkpoint", "runs/demo"]]


def test_a_users_mistake_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> None:
        raise UserError("photo.jpg is a text file;\n  give a picture.")

    becomes(monkeypatch, main)
    assert __main__.main(["generate"]) == 2
    assert capsys.readouterr().err == "error: photo.jpg is a text file; give a picture.\n"


def test_ctrl_c_is_one_line_and_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        raise KeyboardInterrupt

    becomes(monkeypatch, main)
    assert __main__.main(["train"]) == 130
    assert capsys.readouterr().err.split("\n") == ["", "interrupted", ""]


def test_ctrl_c_while_a_command_is_imported_is_as_clean(root: Path) -> None:
    """In the import of an extension KeyboardInterrupt would come out as an ImportError."""
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


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(argv: list[str]) -> None:
        raise ZeroDivisionError

    becomes(monkeypatch, main)
    with pytest.raises(ZeroDivisionError):
        __main__.main(["train"])


def test_the_parser_answers_mistakes_in_one_line_and_keeps_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
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


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's tunables are Linux's")
@pytest.mark.parametrize("chosen", [None, "glibc.malloc.check=0"])
def test_a_process_begins_anew_once_with_large_pages_unless_the_user_chose(root: Path, chosen: str | None) -> None:
    script = """
from pathlib import Path
from emu_jax.__main__ import with_large_pages
print("begun", flush=True)
with_large_pages()
print(Path("/proc/self/environ").read_text().replace(chr(0), chr(10)))
"""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if chosen is not None:
        environment["GLIBC_TUNABLES"] = chosen
    ran = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("begun") == (2 if chosen is None else 1)
    assert f"GLIBC_TUNABLES={chosen or 'glibc.malloc.hugetlb=1'}" in ran.stdout.splitlines()
