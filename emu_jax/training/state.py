"""The training state: what a run carries from step to step."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from clu import parameter_overview
from jax.sharding import Mesh

from emu_jax.errors import UserError
from emu_jax.hardware import device_memory
from emu_jax.sharding.rules import DATA
from emu_jax.sharding.specs import bytes_per_device, shardings, unbox
from emu_jax.training.config import OptimizerConfig
from emu_jax.training.partition import Tree, flatten, split, unflatten
from emu_jax.training.stage import Stage

LARGE_REPLICATED_BYTES = 100e6  # `describe` warns about more bytes of replicated parameters than this


@flax.struct.dataclass
class TrainState:
    """Parameters and optimizer state.

    Attributes:
      step: int32, number of steps done, including skipped ones: it also counts the batches that were read.
      params: all parameters, trainable and frozen.
      opt_state: optimizer state of the trainable parameters.
      ema: moving average of the trainable parameters, or None.
      rng: uint32 key data; step t uses it folded with t.
      skipped: int32, number of steps with a non-finite gradient.
      skipped_in_row: int32, number of consecutive such steps up to now.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    rng: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array


def _new_state(
    stage: Stage, optimizer: optax.GradientTransformation, config: OptimizerConfig, seed: int, initial: Tree
) -> TrainState:
    """Return the boxed state of step 0. Trace it only; outside `jit`, one device would hold everything."""
    init_rng, rng = jax.random.split(jax.random.key(seed))
    params = stage.init(init_rng)
    initial = flatten(initial)
    params = unflatten({path: _replaced(leaf, initial.get(path)) for path, leaf in flatten(params).items()})
    trainable, _ = split(params, stage.trainable)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(trainable),
        ema=None if config.ema_decay is None else jax.tree.map(jnp.copy, trainable),
        rng=jax.random.key_data(rng),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_row=jnp.zeros((), jnp.int32),
    )


def _replaced(leaf: Any, value: jax.Array | None) -> Any:
    """Return a leaf (or its box) with `value` in it, or unchanged for None."""
    if value is None:
        return leaf
    return leaf.replace_boxed(value) if isinstance(leaf, nn.meta.AxisMetadata) else value


def abstract_state(
    stage: Stage, optimizer: optax.GradientTransformation, *, config: OptimizerConfig, mesh: Mesh
) -> TrainState:
    """Return the shapes, dtypes and shardings of the state on `mesh`. Allocates nothing.

    Raises:
      UserError: a pattern of `stage.trainable` matches no parameter.
    """
    boxed = jax.eval_shape(lambda: _new_state(stage, optimizer, config, 0, {}))
    for pattern in stage.trainable:
        if not flatten(split(boxed.params, (pattern,))[0]):
            parts = ", ".join(boxed.params)
            raise UserError(f"The trainable pattern {pattern!r} matches no parameter; the model's parts are {parts}.")
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        unbox(boxed),
        shardings(boxed, mesh),
    )


def create_state(
    stage: Stage,
    optimizer: optax.GradientTransformation,
    *,
    config: OptimizerConfig,
    mesh: Mesh,
    seed: int,
    initial: Tree | None = None,
) -> TrainState:
    """Return the state of step 0. Each device makes only its own shards.

    Args:
      stage: stage to train.
      optimizer: optimizer of its trainable parameters.
      config: of the optimizer.
      mesh: current mesh.
      seed: seed of new parameters.
      initial: parameters to use instead of new ones (donated); may be some of them. New values for these are not even
        compiled, which saves half a minute for a U-Net.
    """
    abstract = abstract_state(stage, optimizer, config=config, mesh=mesh)
    create = jax.jit(
        lambda initial: unbox(_new_state(stage, optimizer, config, seed, initial)),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
        donate_argnums=0,
    )
    return create(initial or {})


def check_memory(state: TrainState, stage: Stage) -> None:
    """Check that the state and a global batch fit into the memory of the devices, before they are made.

    Args:
      state: shapes with shardings.
      stage: stage with the shape of a batch.

    Raises:
      UserError: one of them does not fit.
    """
    memory = device_memory()
    if memory is None:
        return
    needed = bytes_per_device(state)
    if needed > memory:
        raise UserError(
            f"Parameters and optimizer state need {needed / 1e9:.3g} GB per device, which has {memory / 1e9:.3g} GB. "
            "Use a smaller model, or more devices with a larger train.mesh.fsdp or train.mesh.tensor."
        )
    batch = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in stage.batch_spec().values())
    if batch / jax.process_count() > memory * jax.local_device_count():
        raise UserError(
            f"A batch needs {batch / 1e9:.3g} GB, and the devices of all {jax.process_count()} processes have "
            f"{memory * jax.device_count() / 1e9:.3g} GB. Use a smaller batch_size, length, max_images or image_size."
        )


def parameter_table(params: Any) -> str:
    """Return a table of the names, shapes, dtypes and sizes of the parameters, and their total."""
    return parameter_overview.get_parameter_overview(params, include_stats=False)


def describe(state: TrainState, *, mesh: Mesh) -> list[str]:
    """Return a line on the memory per device, and a warning if many parameters are replicated.

    Args:
      state: arrays, or shapes with shardings.
      mesh: mesh of these.
    """
    leaves = flatten(state.params)
    parameters, rest = bytes_per_device(state.params), bytes_per_device(dataclasses.replace(state, params=None))
    lines = [
        f"{sum(leaf.size for leaf in leaves.values()) / 1e6:.4g}M parameters on the mesh "
        + " x ".join(f"{name}:{size}" for name, size in mesh.shape.items())
        + f"; per device {parameters / 1e9:.3g} GB of parameters and {rest / 1e9:.3g} GB of optimizer state"
    ]
    sizes = {path: leaf.size * leaf.dtype.itemsize for path, leaf in leaves.items()}
    shards = math.prod(size for name, size in mesh.shape.items() if name != DATA)
    replicated = {path: size for path, size in sizes.items() if leaves[path].sharding.is_fully_replicated}
    if sum(replicated.values()) > max(sum(sizes.values()) / shards, LARGE_REPLICATED_BYTES) and shards > 1:
        largest = max(replicated, key=lambda path: replicated[path])
        lines.append(
            f"WARNING: {sum(replicated.values()) / 1e9:.3g} GB of parameters are replicated on every device, the "
            f"largest is {largest}: the mesh divides none of its dimensions {list(leaves[largest].shape)}. A smaller "
            "train.mesh.fsdp and a larger train.mesh.data may use less memory per device."
        )
    return lines
