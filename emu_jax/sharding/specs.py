"""From logical axis names to shardings: constraints inside the model, shardings of parameter trees outside it."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.core import meta
from flax.linen import spmd
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emu_jax.sharding.axes import LAYERS
from emu_jax.sharding.rules import DEFAULT_RULES, FSDP, Rules

_TILE = 8  # rows in a tile of a TPU's memory


def logical_constraint(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Holds activation `x` to the sharding of its logical `axes` (under `jax.set_mesh`; without a mesh a no-op)."""
    return spmd.with_logical_constraint(x, tuple(axes), rules=DEFAULT_RULES, fallback=spmd.RulesFallback.RAISE_ERROR)


def activation_spec(axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """Where an activation lies on the mesh in use, for `jax.shard_map`; axes that do not divide it are left out."""
    sizes = jax.sharding.get_abstract_mesh().shape
    wanted = spmd.logical_to_mesh_axes(tuple(axes), DEFAULT_RULES)
    parts = [() if entry is None else (entry,) if isinstance(entry, str) else entry for entry in wanted]
    parts = [entry if set(entry) <= set(sizes) else () for entry in parts]
    fits = [size % math.prod(sizes[name] for name in entry) == 0 for size, entry in zip(shape, parts, strict=True)]
    return PartitionSpec(*(entry if fit and entry else None for entry, fit in zip(parts, fits, strict=True)))


def unbox(tree: Any) -> Any:
    """The parameters themselves, without the boxes that carry their axis names."""
    return meta.unbox(tree)


def shardings(boxed: Any, mesh: Mesh, *, rules: Rules = DEFAULT_RULES) -> Any:
    """NamedSharding on `mesh` of every leaf of a boxed tree.

    A mesh axis that does not divide the dimension its rule names falls on another dimension of the same array that it
    does divide: 256 does not divide EVA's width of 1408, but its MLP's 6144. So does one that leaves a device some rows
    but not whole tiles of 8, whose gradients a TPU would pad and pass around: 128 leaves 11 of the 1408, 48 of the
    6144. Where there is no other the first is kept, and where none divides (256 of 16 heads of 88) the array is whole.
    """
    return jax.tree.map(
        lambda names, leaf: NamedSharding(mesh, _fit(names, tuple(leaf.shape), mesh, rules)),
        nn.get_partition_spec(boxed),
        unbox(boxed),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def bytes_per_device(tree: Any) -> int:
    """Bytes that one device holds of a tree of sharded arrays, or of ShapeDtypeStructs with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _fit(names: PartitionSpec, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    """The mesh axes of an array with logical axes `names`, none of which leaves a remainder, nor part of a tile."""
    logical = tuple(names) + (None,) * (len(shape) - len(names))
    wanted = tuple(spmd.logical_to_mesh_axes(logical, rules))
    placed = [() if entry is None else (entry,) if isinstance(entry, str) else tuple(entry) for entry in wanted]

    def divides(dimension: int, entry: tuple[str, ...], *, rows: int = 1) -> bool:
        return shape[dimension] % (rows * math.prod(mesh.shape[name] for name in entry)) == 0

    # A scan takes the layers apart: cut along them, each layer would lie on few devices alone.
    candidates = [i for i, name in enumerate(logical) if name != LAYERS]
    for dimension, entry in enumerate(list(placed)):
        rows = _TILE if entry == (FSDP,) else 1  # tensor parallelism cuts by heads, however few
        if not divides(dimension, entry, rows=rows):
            placed[dimension] = ()
            larger_first = sorted(candidates, key=lambda i: (len(placed[i]), -shape[i]))
            homes = [i for i in larger_first if divides(i, placed[i] + entry, rows=rows)]
            homes += [i for i in (dimension, *larger_first) if divides(i, placed[i] + entry)]
            if homes:
                placed[homes[0]] += entry
    return PartitionSpec(*(entry if len(entry) > 1 else entry[0] if entry else None for entry in placed))
