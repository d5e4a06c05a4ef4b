"""Load the Emu that the arguments of a command name, on one device or over the devices of all hosts."""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax

from emu_jax.checkpoints.adapter import read_adapter
from emu_jax.errors import UserError
from emu_jax.generation.api import load, load_adapters
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.io.paths import local_path
from emu_jax.sharding.mesh import make_mesh, parse_mesh
from emu_jax.training.processes import start_processes


def load_emu(arguments: argparse.Namespace) -> EmuPipeline:
    """Connect the processes of the command, if there are several, and load the model of `add_model_arguments`.

    Raises:
      UserError: there is no model, it does not fit its tokenizer or adapter, several adapters are named, or several
        processes have no mesh.
    """
    adapter = one_adapter(arguments.adapter)
    emu = load(arguments.checkpoint, **_options(arguments), adapter=adapter)
    if adapter is not None and jax.process_index() == 0:
        print(f"adapter {adapter}: {read_adapter(adapter).summary()}", file=sys.stderr)
    return emu


def load_named(arguments: argparse.Namespace, *, name: str) -> dict[str, EmuPipeline]:
    """Load the model as `load_emu`, or one for each adapter, by name; `name` is that of a model without adapters.

    Raises:
      UserError: as `load_emu`; or two adapters have the same name, or different shapes.
    """
    named = [parse_adapter(text) for text in arguments.adapter]
    adapters = dict(named)
    if len(adapters) < len(named):
        raise UserError("Two adapters have the same name. Name them: --adapter NAME=DIR")
    loaded = load_adapters(arguments.checkpoint, adapters, **_options(arguments))
    if not adapters:
        return {name: loaded[None]}
    models = {adapter: loaded[adapter] for adapter in adapters}
    if len({repr((emu.config, jax.tree.structure(emu.params))) for emu in models.values()}) > 1:
        raise UserError(
            "The adapters differ in their LoRA settings or vocabulary, so that they cannot share compiled programs. "
            "Serve them by separate processes."
        )
    return models


def one_adapter(texts: list[str]) -> Path | None:
    """Return the directory of the adapter in the values of --adapter; None if there is none.

    Raises:
      UserError: there are several.
    """
    if len(texts) > 1:
        raise UserError("This command uses one adapter. Name one --adapter.")
    return parse_adapter(texts[0])[1] if texts else None


def parse_adapter(text: str) -> tuple[str, Path]:
    """Return the name and the directory in NAME=DIR, or in DIR, whose name is that of the folder."""
    name, separator, path = text.partition("=")
    if separator and name and "/" not in name:
        return name, local_path(path)
    return local_path(text).resolve().name, local_path(text)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Connect the processes; return the keyword arguments of `load`."""
    sizes = None if arguments.mesh is None else parse_mesh(arguments.mesh)
    start_processes()
    if sizes is None and jax.process_count() > 1:
        raise UserError("On several processes, name the mesh: --mesh fsdp:1,tensor:8")
    return {
        "tokenizer": arguments.tokenizer,
        "dtype": arguments.dtype,
        "mesh": None if sizes is None else make_mesh(sizes),
        "quantization": arguments.quantization,
    }


def other_process() -> bool:
    """Return True on all processes but the first, the one that prints and writes the result."""
    return jax.process_index() > 0
