"""A program that can be compiled for a TPU pod, and the shardings of its arguments."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from emu_jax.convert.load import Quantization
from emu_jax.errors import UserError
from emu_jax.models.emu import Emu
from emu_jax.sharding import axes
from emu_jax.sharding.mesh import MeshConfig
from emu_jax.sharding.specs import activation_spec, shardings, unbox
from emu_jax.training.runs.emu import EmuRunConfig, read_emu_config


@dataclasses.dataclass(frozen=True)
class Program:
    """A program before compilation.

    Attributes:
      name: key of the program in `PROGRAMS`.
      mesh: default mesh.
      compile: compiles the program for a mesh; called under `jax.set_mesh`.
      flops: useful operations of one run on all chips; None if they are not counted.
      tokens: decoder positions per run.
      images: images read or generated per run.
      steps: training steps of the config; None for other programs.
    """

    name: str
    mesh: MeshConfig
    compile: Callable[[Mesh], jax.stages.Compiled]
    flops: float | None
    tokens: int
    images: int
    steps: int | None = None


@dataclasses.dataclass(frozen=True)
class GenerationShape:
    """Sizes of a generation program.

    Attributes:
      rows: prompts or images per batch.
      prompt: positions per prompt.
      new_tokens: cache slots after the prompt.
      steps: sampler steps.
      quantization: of the kernels of the Emu; None: in the dtype of the computation.
    """

    rows: int
    prompt: int
    new_tokens: int
    steps: int
    quantization: Quantization | None = None


def read_emu(config: Any) -> tuple[EmuRunConfig, Emu]:
    """Return the run and the model of a training config.

    Raises:
      UserError: the config leaves the vocabulary size to the tokenizer.
    """
    run = read_emu_config(config)
    vocabulary = run.model.decoder.vocab_size
    if vocabulary == 0:
        raise UserError(
            "This config takes its vocabulary size from the tokenizer, which compile does not read. Set it, for "
            "example --config.model.decoder.vocab_size=32004."
        )
    # The vocabulary ends with the special ids: ..., <image>, and for instruction tuning [USER] and [ASSISTANT].
    return run, Emu(run.model, image_token_id=vocabulary - (3 if run.instruct else 1))


def abstract_params(boxed: Any, mesh: Mesh, dtype: Any) -> Any:
    """Return ShapeDtypeStructs of `dtype` for a boxed parameter tree, with its shardings on `mesh`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
        unbox(boxed),
        shardings(boxed, mesh),
    )


def shard_rows(tree: Any, mesh: Mesh) -> Any:
    """Return the ShapeDtypeStructs of `tree`, sharded along their first dimension."""
    return jax.tree.map(lambda x: with_sharding(x, ((axes.ACT_BATCH,) + (None,) * x.ndim)[: x.ndim], mesh), tree)


def with_sharding(array: jax.ShapeDtypeStruct, names: tuple[str | None, ...], mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Return `array` with the sharding of its logical axes `names`."""
    sharding = NamedSharding(mesh, activation_spec(names, array.shape))
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def compile_program(
    program: Callable[..., Any], arguments: tuple[Any, ...], *, donated: tuple[int, ...] = ()
) -> jax.stages.Compiled:
    """Compile `program` for abstract `arguments`; `donated` are the numbers of arguments whose memory is reused."""
    return jax.jit(program, donate_argnums=donated).lower(*arguments).compile()
