"""The argument parser of all commands: mistakes become one clear line instead of a page of usage."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from emu_jax.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """argparse with the house's manners; the command's module gives its name and description.

        parser = ArgumentParser(__name__, __doc__)
        parser.add_argument("--output", type=Path, required=True)
        arguments = parser.parse_args(argv)

    `--help` prints the whole docstring as it is laid out, so examples belong there.
    """

    def __init__(self, module: str, doc: str | None, **keywords: Any) -> None:
        """Args: `__name__` and `__doc__` of the command's module, then what `argparse.ArgumentParser` takes."""
        self.command = module.rpartition(".")[2].replace("_", "-")
        super().__init__(
            prog=f"python -m emu_jax {self.command}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **keywords,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (`{self.prog} --help` tells what it takes)")
