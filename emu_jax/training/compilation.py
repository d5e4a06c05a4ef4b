"""Compile the train step of a config: for `train`, and for `compile`, which studies it without TPUs."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emu_jax.errors import UserError
from emu_jax.hardware import on_cpu, on_tpu
from emu_jax.training.chips import GATHERED_KERNELS
from emu_jax.training.config import TrainConfig
from emu_jax.training.prefetch import batch_shardings
from emu_jax.training.stage import Stage
from emu_jax.training.state import TrainState
from emu_jax.training.step import make_train_step

# XLA for CPUs computes element-wise operations and reductions in YNNPACK by default, which vectorizes the backward pass
# of a softmax badly: an additional third of a small model's step (experiments/records/training_step.md).
NO_YNNPACK = ("xla_cpu_experimental_ynn_fusion_type=",)


def compile_train_step(config: TrainConfig, *, stage: Stage, state: TrainState, mesh: Mesh) -> jax.stages.Compiled:
    """Compile the step before its first call. It is traced once; a batch of another shape is an error.

    See `lower_train_step` for the arguments and errors; XLA can also reject a compiler option.
    """
    lowered = lower_train_step(config, stage=stage, state=state, mesh=mesh)
    try:
        return lowered.compile(compiler_options=_parse(_defaults() + config.compiler_options))
    except jax.errors.JaxRuntimeError as error:
        if "compile option" not in str(error):
            raise
        raise UserError(f"train.compiler_options: {error}") from None


def lower_train_step(config: TrainConfig, *, stage: Stage, state: TrainState, mesh: Mesh) -> jax.stages.Lowered:
    """Trace the step, and return it before its compilation.

    Args:
      config: length, optimizer, microbatches and compiler options of the run.
      stage: stage to train.
      state: arrays, or shapes with shardings.
      mesh: current mesh, set by `jax.set_mesh`.

    Raises:
      UserError: the batch size is not a multiple of the number of microbatches.
    """
    spec = stage.batch_spec()
    rows = next(iter(spec.values())).shape[0]
    if rows % config.accumulation:
        raise UserError(
            f"The batch size {rows} is not a multiple of train.accumulation, which is {config.accumulation}."
        )
    sharded = batch_shardings(spec, mesh=mesh)
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharded[name]) for name, x in spec.items()}
    step = make_train_step(stage, config=config.optimizer, steps=config.steps, accumulation=config.accumulation)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    replicated = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated))
    return jitted.lower(state, batch)


def _defaults() -> tuple[str, ...]:
    return GATHERED_KERNELS if on_tpu() else NO_YNNPACK if on_cpu() else ()


def _parse(options: tuple[str, ...]) -> dict[str, str | bool]:
    booleans = {"true": True, "false": False}  # as text, XLA accepts only "True" and "False"
    pairs = (option.split("=", 1) for option in options)
    return {name: booleans.get(value, value) for name, value in pairs}
