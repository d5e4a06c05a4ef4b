"""A program that can be compiled for a pod, and how what it is given lies there."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from emu_jax.errors import UserError
from emu_jax.models.emu import Emu
from emu_jax.sharding import axes
from emu_jax.sharding.mesh import MeshConfig
from emu_jax.sharding.specs import activation_spec, shardings, unbox
from emu_jax.training.run import RunConfig, read_run_config


@dataclasses.dataclass(frozen=True)
class Program:
    """One program, not compiled yet.

    Attributes:
      name: of the program.
      mesh: over which it is laid out, where the user names none.
      compile: under `jax.set_mesh`, for the mesh's devices.
      flops: useful operations of one run on all chips; None where nobody has counted them.
      tokens: decoder places in one run.
      images: read or made in one run.
      steps: of training; None where the program is no step of one.
    """

    name: str
    mesh: MeshConfig
    compile: Callable[[Mesh], jax.stages.Compiled]
    flops: float | None
    tokens: int
    images: int
    steps: int | None = None


@dataclasses.dataclass(frozen=True)
class Load:
    """How much a program of generation does at once.

    Attributes:
      rows: prompts, or pictures to be sampled.
      prompt: places in a row's prompt.
      new_tokens: room for what is written after it.
      steps: of the sampler.
    """

    rows: int = 8
    prompt: int = 512
    new_tokens: int = 128
    steps: int = 50


def read_emu(config: Any) -> tuple[RunConfig, Emu]:
    run = read_run_config(config)
    vocabulary = run.model.decoder.vocab_size
    if vocabulary == 0:
        raise UserError(
            "This config takes its vocabulary from the tokenizer, which compile does not read; give its size, as in "
            "--config.model.decoder.vocab_size=32004."
        )
    # The special ids end the vocabulary: ..., <image>, and for instructions [USER] and [ASSISTANT].
    return run, Emu(run.model, image_token_id=vocabulary - (3 if run.instruct else 1))


def placed(boxed: Any, mesh: Mesh, dtype: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
        unbox(boxed),
        shardings(boxed, mesh),
    )


def by_rows(tree: Any, mesh: Mesh) -> Any:
    """Arrays cut along their first dimension."""
    return jax.tree.map(lambda x: laid(x, ((axes.ACT_BATCH,) + (None,) * x.ndim)[: x.ndim], mesh), tree)


def laid(array: jax.ShapeDtypeStruct, names: tuple[str | None, ...], mesh: Mesh) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(mesh, activation_spec(names, array.shape))
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def compile_program(
    program: Callable[..., Any], arguments: tuple[Any, ...], *, donated: tuple[int, ...] = ()
) -> jax.stages.Compiled:
    return jax.jit(program, donate_argnums=donated).lower(*arguments).compile()
