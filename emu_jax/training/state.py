"""All that a run carries from step to step."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from emu_jax.errors import UserError
from emu_jax.sharding.rules import DATA
from emu_jax.sharding.specs import bytes_per_device, shardings, unbox
from emu_jax.training.config import OptimizerConfig
from emu_jax.training.partition import Tree, flatten, split, unflatten
from emu_jax.training.stage import Stage

LARGE_REPLICATED_BYTES = 100e6  # bytes of parameters whole on every device that are worth a warning


@flax.struct.dataclass
class TrainState:
    """Parameters and what the optimizer knows of them.

    Attributes:
      step: int32, steps done; also counts skipped ones, so that it says how much data was seen.
      params: every parameter, trainable and frozen.
      opt_state: of the trainable ones alone.
      ema: moving average of the trainable ones, or None.
      rng: uint32 key data; step t uses it folded with t.
      skipped: int32, steps whose gradient was not finite.
      skipped_in_row: int32, how many of the last steps in a row.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    rng: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array


def _new_state(
    stage: Stage, optimizer: optax.GradientTransformation, config: OptimizerConfig, seed: int, given: Tree
) -> TrainState:
    """The state of step 0, boxed; to be traced, never run outside `jit`."""
    init_rng, rng = jax.random.split(jax.random.key(seed))
    params = stage.init(init_rng)
    given = flatten(given)
    params = unflatten({path: _filled(leaf, given.get(path)) for path, leaf in flatten(params).items()})
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


def _filled(leaf: Any, value: jax.Array | None) -> Any:
    """A leaf, or its box, with `value` where there is one."""
    if value is None:
        return leaf
    return leaf.replace_boxed(value) if isinstance(leaf, nn.meta.AxisMetadata) else value


def abstract_state(
    stage: Stage, optimizer: optax.GradientTransformation, *, config: OptimizerConfig, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state on `mesh`; allocates nothing.

    Raises:
      UserError: a pattern of `stage.trainable` that matches no parameter.
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
    given: Tree | None = None,
) -> TrainState:
    """The state of step 0, each array made in its shards (never whole on one device).

    Parameters in `given` (consumed) are taken as they are; the others are drawn. What is not drawn is not compiled
    either: half a minute for a U-Net.
    """
    abstract = abstract_state(stage, optimizer, config=config, mesh=mesh)
    create = jax.jit(
        lambda given: unbox(_new_state(stage, optimizer, config, seed, given)),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
        donate_argnums=0,
    )
    return create(given or {})


def describe(state: TrainState, *, mesh: Mesh) -> list[str]:
    """What a device holds of `state` (arrays or shapes), and a warning when much of it lies whole on each."""
    leaves = flatten(state.params)
    own, rest = bytes_per_device(state.params), bytes_per_device(dataclasses.replace(state, params=None))
    lines = [
        f"{sum(leaf.size for leaf in leaves.values()) / 1e6:.4g}M parameters over the mesh "
        + " x ".join(f"{name}:{size}" for name, size in mesh.shape.items())
        + f"; a device holds {own / 1e9:.3g} GB of them, and {rest / 1e9:.3g} GB of what the optimizer keeps"
    ]
    sizes = {path: leaf.size * leaf.dtype.itemsize for path, leaf in leaves.items()}
    parts = math.prod(size for name, size in mesh.shape.items() if name != DATA)
    whole = {path: size for path, size in sizes.items() if leaves[path].sharding.is_fully_replicated}
    if sum(whole.values()) > max(sum(sizes.values()) / parts, LARGE_REPLICATED_BYTES) and parts > 1:
        largest = max(whole, key=lambda path: whole[path])
        lines.append(
            f"WARNING: {sum(whole.values()) / 1e9:.3g} GB of parameters lie whole on every device, above all "
            f"{largest}: the mesh divides none of its dimensions {list(leaves[largest].shape)}. A smaller "
            "train.mesh.fsdp, with the rest in train.mesh.data, may hold less on each."
        )
    return lines
