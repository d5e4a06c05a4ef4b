"""Load the Emu that the arguments of a command name, on one device or over the devices of all hosts."""

import argparse

import jax

from emu_jax.errors import UserError
from emu_jax.generation.api import load
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.sharding.mesh import make_mesh, parse_mesh
from emu_jax.training.processes import start_processes


def load_emu(arguments: argparse.Namespace) -> EmuPipeline:
    """Connect the processes of the command, if there are several, and load the model of `add_model_arguments`.

    Raises:
      UserError: there is no model, it does not fit its tokenizer, or several processes have no mesh.
    """
    sizes = None if arguments.mesh is None else parse_mesh(arguments.mesh)
    start_processes()
    if sizes is None and jax.process_count() > 1:
        raise UserError("On several processes, name the mesh: --mesh fsdp:1,tensor:8")
    return load(
        arguments.checkpoint,
        tokenizer=arguments.tokenizer,
        dtype=arguments.dtype,
        mesh=None if sizes is None else make_mesh(sizes),
        quantization=arguments.quantization,
    )


def other_process() -> bool:
    """Return True on all processes but the first, the one that prints and writes the result."""
    return jax.process_index() > 0
