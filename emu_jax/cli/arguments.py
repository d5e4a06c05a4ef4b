"""The argument parser of all commands: a mistake gives one clear line instead of a page of usage.

A command parses its arguments before it imports anything heavy, so that `--help` and mistakes answer immediately:

    def main(argv: list[str]) -> None:
        parser = ArgumentParser(__name__, __doc__)
        parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
        arguments = parser.parse_args(argv)

        with heavy_imports():
            from emu_jax.generation.api import load
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from emu_jax.errors import UserError
from emu_jax.io.paths import local_path, local_text, path_or_url


class LocalText(str):
    """Type of an argument that is the text of a local path, or a pattern of local paths."""


class PathOrURL(str):
    """Type of an argument that is a local path, or a URL such as gs://BUCKET/FOLDER."""


# The checks of arguments that are paths, by the `type` of the argument. Path is a local path.
PATH_TYPES: dict[Any, Callable[[Any], Any]] = {Path: local_path, LocalText: local_text, PathOrURL: path_or_url}


class ArgumentParser(argparse.ArgumentParser):
    """argparse with the conventions of the commands. `--help` prints the docstring of the module as it is written."""

    def __init__(self, module: str, doc: str | None, **keywords: Any) -> None:
        """Take the name and help from `__name__` and `__doc__` of the command's module."""
        self.command = module.rpartition(".")[2].replace("_", "-")
        super().__init__(
            prog=f"python -m emu_jax {self.command}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **keywords,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:  # type: ignore[override]
        """Parse, and check the arguments whose type is one of `PATH_TYPES`.

        This cannot be done by the types themselves: argparse replaces their error by "invalid value".

        Raises:
          UserError: a mistake, or a URL where the command needs a local path.
        """
        namespace, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            check: Callable[[Any], Any] | None = PATH_TYPES.get(action.type)
            value = getattr(namespace, action.dest, None)
            if check is not None and value is not None:
                setattr(
                    namespace, action.dest, [check(one) for one in value] if isinstance(value, list) else check(value)
                )
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the message of argparse."""
        raise UserError(f"{message} (see `{self.prog} --help`)")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help; argparse itself would ignore that it cannot be written."""
        print(message, end="", file=file)

    def add_config_argument(self) -> None:
        """Add --config, for a command that reads the config of a training run; parse with `parse_config_args`."""
        self.add_argument(
            "--config",
            required=True,
            metavar="FILE[:ARGUMENT]",
            help="config file of a run, such as configs/tiny.py; --config.FIELD=VALUE sets one of its fields",
        )

    def add_model_arguments(self, *, required: bool = True) -> None:
        """Add the arguments of a command that loads an Emu by `cli.loading.load_emu`."""
        self.add_argument(
            "--checkpoint",
            required=required,
            type=Path,
            metavar="DIR",
            help="model directory, or the workdir of a training run",
        )
        self.add_argument(
            "--tokenizer", type=Path, metavar="FILE", help="SentencePiece model (default: DIR/tokenizer.model)"
        )
        self.add_adapter_argument()
        self.add_placement_arguments()

    def add_adapter_argument(self) -> None:
        """Add --adapter; it may be repeated, and `cli.loading` decides how many a command takes."""
        self.add_argument(
            "--adapter",
            action="append",
            default=[],
            metavar="[NAME=]DIR",
            help="adapter of the checkpoint, from export-adapter (NAME: of the model that serve offers)",
        )

    def add_placement_arguments(self) -> None:
        """Add --dtype, --quantization and --mesh."""
        self.add_argument("--dtype", choices=("float32", "bfloat16"), help="compute dtype (default: as saved)")
        self.add_argument(
            "--quantization", choices=("int8",), help="store the kernels in 8 bits (default: in the compute dtype)"
        )
        self.add_argument(
            "--mesh",
            metavar="SIZES",
            help="shard the model over the devices of all hosts, as in fsdp:1,tensor:8 (default: one device)",
        )

    def parse_config_args(self, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse `argv`; also return the words that set config fields, such as --config.train.steps=2000.

        Raises:
          UserError: a word that is neither an argument of this command nor sets a config field.
        """
        arguments, rest = self.parse_known_args(argv)
        takes_value = False
        for word in rest:
            if re.match(r"--?(no)?config\.", word):
                takes_value = "=" not in word
            elif takes_value and not word.startswith("-"):
                takes_value = False
            elif word.startswith("-"):
                name = word.split("=")[0]
                close = difflib.get_close_matches(name, self._option_string_actions, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                self.error(f"unknown argument {name}{hint}")
            else:
                self.error(f"unexpected argument {word!r}; set config fields as in --config.train.steps=2000")
        return arguments, rest


def at_least(minimum: int, *, at_most: int | None = None) -> Callable[[str], int]:
    """Return an argparse type: an integer that is not below `minimum`, and not above `at_most`."""

    def parse(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, not {value}")
        if at_most is not None and value > at_most:
            raise argparse.ArgumentTypeError(f"must be at most {at_most}, not {value}")
        return value

    parse.__name__ = "integer"  # argparse names the type in its error for other text
    return parse
