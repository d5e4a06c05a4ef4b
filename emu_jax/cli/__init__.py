"""The commands of `python -m emu_jax`: each module here that has a `main(argv)` is one.

`prepare_data.py` is the command `prepare-data`; the first line of its docstring is its line in the list of commands.
This list is made from the source of the modules without importing them, so that `--help` answers immediately.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import types
from pathlib import Path

from emu_jax.errors import UserError


def commands() -> dict[str, str]:
    """Return the name of each command and its line of help, sorted by name."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem.replace("_", "-")] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def overview() -> str:
    """Return the output of `python -m emu_jax --help`."""
    table = commands()
    width = max(map(len, table), default=0)
    lines = [f"  {name:<{width}}  {line}" for name, line in table.items()]
    return "\n".join(
        [
            "usage: python -m emu_jax COMMAND [OPTIONS]",
            "",
            "commands:",
            *lines,
            "",
            "`python -m emu_jax COMMAND --help` lists the options of a command.",
            "Compiled programs are saved in a cache folder (or JAX_COMPILATION_CACHE_DIR); --no-cache compiles again.",
        ]
    )


def load(name: str) -> types.ModuleType:
    """Import the module of the command `name`; it has `main(argv: list[str]) -> None`.

    Raises:
      UserError: there is no such command; the nearest one is named.
    """
    known = commands()
    if name not in known:
        close = difflib.get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(known)}."
        raise UserError(f"there is no command {name!r}; {hint}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
