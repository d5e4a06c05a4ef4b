"""The train step from its config to a compiled program: what `train` runs, and what `compile` studies without a pod."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emu_jax.errors import UserError
from emu_jax.hardware import on_tpu
from emu_jax.training.chips import GATHERED_KERNELS
from emu_jax.training.config import TrainConfig
from emu_jax.training.prefetch import batch_shardings
from emu_jax.training.stage import Stage
from emu_jax.training.state import TrainState
from emu_jax.training.step import make_train_step


def compile_train_step(config: TrainConfig, *, stage: Stage, state: TrainState, mesh: Mesh) -> jax.stages.Compiled:
    """Compiles the step ahead of its first call: it is traced once, and a second shape would be an error.

    Args:
      config: length, optimizer, microbatches and compiler options of the run.
      stage: what is trained.
      state: arrays, or shapes that carry their shardings.
      mesh: the one that `jax.set_mesh` was given.

    Raises:
      UserError: the rows of a batch do not divide into the microbatches, or the compiler knows no such option.
    """
    spec = stage.batch_spec()
    rows = next(iter(spec.values())).shape[0]
    if rows % config.accumulation:
        raise UserError(f"The batch of {rows} rows does not divide into {config.accumulation} microbatches.")
    placed = batch_shardings(spec, mesh=mesh)
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed[name]) for name, x in spec.items()}
    step = make_train_step(stage, config=config.optimizer, steps=config.steps, accumulation=config.accumulation)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    replicated = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated))
    lowered = jitted.lower(state, batch)
    words = {"true": True, "false": False}  # XLA reads "True" alone
    told = (*GATHERED_KERNELS, *config.compiler_options) if on_tpu() else config.compiler_options
    pairs = (option.split("=", 1) for option in told)
    options = {name: words.get(value, value) for name, value in pairs}
    try:
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "compile option" not in str(error):
            raise
        raise UserError(f"train.compiler_options: {error}") from None
