"""Wrong command lines of every command, run in this process: each must be refused in one line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from emu_jax import cli
from emu_jax.__main__ import main
from emu_jax.checkpoints.model_directory import boxed_shapes, save_model
from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.config_file import read_config
from emu_jax.config import to_dict
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.errors import UserError
from emu_jax.models.presets import emu_tiny
from emu_jax.sharding.specs import unbox
from tests.attacks.trial import Outcome, Trial
from tests.data.sources.makers import make_jsonl
from tests.generation.conftest import LINES, random_tree

CONFIG = "configs/tiny.py"
INTEGERS = ("x", "", "1.5", "nan", "-7", str(2**70), "0x10", "1e3")
FLOATS = ("x", "", "nan", "inf", "-inf", "1e39", "1,5")
PATHS = ("http://example.org/x", "~no_such_user/x", "n" * 300, "gs:", "file:///x")
FIELDS = ("x", "nan", "inf", "-7", "1e39", "()", "None.None")
BAD_JSON = (-1, 0, 2**40, 0.5, "3", None, [], {}, True, 1e300)


class _Captured(Exception):
    pass


def parser_of(command: str) -> argparse.ArgumentParser | None:
    """Return the parser that a command makes; None if it makes one for each of its own commands."""
    found: list[argparse.ArgumentParser] = []

    def capture(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        found.append(self)
        raise _Captured

    with mock.patch.object(ArgumentParser, "parse_known_args", capture), contextlib.suppress(_Captured, UserError):
        cli.load(command).main([])
    return found[0] if found else None


def run(words: list[str]) -> tuple[int, str]:
    """Run a command line in this process with an empty stdin; return its exit code and what it wrote to stderr."""
    errors = io.StringIO()
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(errors),
        mock.patch.object(sys, "stdin", io.StringIO("")),
    ):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return code, errors.getvalue()


class WrongInvocations:
    """One mistake in a command line that is right otherwise."""

    name = "wrong invocations"

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        tokenizer = train_tokenizer(LINES * 4, self.folder / "tokenizer.model", vocab_size=300)
        config = emu_tiny(vocab_size=tokenizer.vocab_size)
        self.config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, max_length=128))
        self.model = self.folder / "model"
        params = random_tree(unbox(boxed_shapes(self.config)))
        save_model(self.model, self.config, params, tokenizer=self.folder / "tokenizer.model")
        (self.folder / "set").mkdir()
        self.records = make_jsonl(self.folder / "set")
        parsers = {name: parser_of(name) for name in cli.commands()}
        self.parsers = {name: parser for name, parser in parsers.items() if parser is not None}
        self.fields = list(number_fields(to_plain(read_config(CONFIG))))
        self.base = {
            "chat": ["--checkpoint", str(self.model)],
            "compile": [f"--config={CONFIG}", "--topology=v5p:2x2x1"],
            "demo": [f"--workdir={self.folder / 'demo'}"],
            "doctor": [],
            "evaluate": ["vqav2", f"--checkpoint={self.model}", f"--data={self.folder}", f"--output={self.folder}/e"],
            "export-torch": [str(self.model), str(self.folder / "out")],
            "generate": ["--checkpoint", str(self.model), "hello", "--max-new-tokens=2"],
            "import-torch": [str(self.folder / "set"), str(self.folder / "imported")],
            "inspect-data": [f"--config={CONFIG}"],
            "prepare-data": ["--source=jsonl", f"--input={self.records}", f"--output={self.folder / 'prepared'}"],
            "serve": [f"--checkpoint={self.model}", "--port=0"],
            "train": [f"--config={CONFIG}", f"--workdir={self.folder / 'run'}"],
        }

    def attempt(self, rng: random.Random) -> Trial:
        kind = rng.choice((self.wrong_option, self.wrong_option, self.wrong_field, self.wrong_files))
        words = kind(rng)
        description = " ".join(word if len(word) < 80 else f"{word[:40]}..." for word in words)
        code, errors = run(words)
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        if code == 0:
            return Trial(Outcome.WRONG, description)
        if code != 2 or len(lines) != 1 or "Traceback" in errors:
            return Trial(Outcome.TRACEBACK, f"{description}: code {code}, {errors[-300:]}")
        return Trial(Outcome.REFUSED, description)

    def wrong_option(self, rng: random.Random) -> list[str]:
        """Return a command line with an option that is unknown, missing, or has a wrong value."""
        command = rng.choice(sorted(self.parsers))
        base = list(self.base.get(command, []))
        choices = [(action, value) for action in self.parsers[command]._actions for value in wrong_values(action)]
        mistake = rng.random()
        if mistake < 0.15 or not choices:
            return [command, *base, rng.choice(("--nonsense", "--no", "--check-point=x", "-z", "--=3"))]
        if mistake < 0.25 and base and command in self.base:
            return [command, *base[: rng.randrange(len(base))], "--nonsense=1"]
        action, value = rng.choice(choices)
        return [command, *base, f"{action.option_strings[-1]}={value}"]

    def wrong_field(self, rng: random.Random) -> list[str]:
        """Return a command line that sets a number of a config to a value that cannot be right."""
        command = rng.choice(("train", "inspect-data", "train"))
        field = rng.choice(self.fields)
        return [command, *self.base[command], f"--config.{field}={rng.choice(FIELDS)}"]

    def wrong_files(self, rng: random.Random) -> list[str]:
        """Return a command line that names a file of another kind, a damaged one, or none."""
        wrong = self.folder / f"wrong{rng.randrange(10**9)}"
        match rng.randrange(6):
            case 0:
                wrong.write_bytes(rng.randbytes(rng.randrange(200)))
            case 1:
                wrong.mkdir()
            case 2:
                wrong.mkdir()
                (wrong / "config.json").write_text(rng.choice(("", "{", "[]", "[" * 100_000, '{"decoder": 3}', "null")))
            case 3:
                wrong.mkdir()
                (wrong / "config.json").mkdir()
            case 4:
                wrong.mkdir()
                values = to_dict(self.config)
                part = rng.choice(("vision", "causal_former", "decoder"))
                values[part][rng.choice(sorted(values[part]))] = rng.choice(BAD_JSON)
                (wrong / "config.json").write_text(json.dumps(values))
            case 5:
                pass  # there is no such file
        return rng.choice(
            (
                ["generate", "--checkpoint", str(wrong), "hello"],
                ["generate", "--checkpoint", str(self.model), "--tokenizer", str(wrong), "hello"],
                ["export-torch", str(wrong), str(self.folder / "out")],
                ["import-torch", str(wrong), str(self.folder / "imported")],
                ["evaluate", "vqav2", f"--checkpoint={self.model}", f"--data={wrong}", f"--output={self.folder}/e"],
                ["prepare-data", "--source=pairs", f"--input={wrong}", f"--output={self.folder / 'prepared'}"],
                ["train", f"--config={wrong}", f"--workdir={self.folder / 'run'}"],
                ["train", f"--config={CONFIG}", f"--workdir={self.folder}/run", f"--config.tokenizer={wrong}"],
                ["chat", "--checkpoint", str(wrong)],
                ["serve", "--checkpoint", str(wrong)],
            )
        )


def wrong_values(action: argparse.Action) -> Iterator[str]:
    """Yield values that an option must refuse."""
    if not action.option_strings or action.nargs == 0:
        return
    if action.choices is not None:
        yield from ("nonsense", "")
    elif action.type is int or getattr(action.type, "__name__", "") == "integer":
        yield from INTEGERS
    elif action.type is float:
        yield from FLOATS
    elif action.type is Path:
        yield from PATHS


def number_fields(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield the names of the fields that hold a number."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from number_fields(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}"


def to_plain(config: Any) -> dict[str, Any]:
    """Return the dicts of a ConfigDict."""
    return config.to_dict()
