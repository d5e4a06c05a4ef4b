"""Logical axis names to shardings: constraints inside the model, shardings of parameter trees outside it."""

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

_TILE = 8  # rows in a tile of TPU memory


def logical_constraint(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Constrain activation `x` to the sharding of its logical `axes`. Without a mesh (`jax.set_mesh`), return `x`."""
    return spmd.with_logical_constraint(x, tuple(axes), rules=DEFAULT_RULES, fallback=spmd.RulesFallback.RAISE_ERROR)


def activation_spec(axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """Return the PartitionSpec of an activation on the current mesh, for `jax.shard_map`.

    A dimension that its mesh axes do not divide is not sharded.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    requested = spmd.logical_to_mesh_axes(tuple(axes), DEFAULT_RULES)
    parts = [() if entry is None else (entry,) if isinstance(entry, str) else entry for entry in requested]
    parts = [entry if set(entry) <= set(sizes) else () for entry in parts]
    fits = [size % math.prod(sizes[name] for name in entry) == 0 for size, entry in zip(shape, parts, strict=True)]
    return PartitionSpec(*(entry if fit and entry else None for entry, fit in zip(parts, fits, strict=True)))


def unbox(tree: Any) -> Any:
    """Return the parameter arrays without the boxes that carry their axis names."""
    return meta.unbox(tree)


def shardings(boxed: Any, mesh: Mesh, *, rules: Rules = DEFAULT_RULES) -> Any:
    """Return the NamedSharding on `mesh` of every leaf of a boxed tree.

    Each mesh axis goes to the dimension that its rule names, or to another dimension of the same array in two cases:

    - It does not divide that dimension. For example, 256 does not divide EVA's width of 1408, but divides its MLP
      width of 6144.
    - `fsdp` would leave each device a number of rows that is not a multiple of 8, so that a TPU would pad and
      communicate partial tiles of the gradients. For example, 128 devices get 11 rows of 1408 each, but 48 of 6144.

    If no other dimension fits in the second case, the first dimension is used. If the axis divides no dimension, it is
    dropped and the array is replicated over it (256 with 16 heads of 88).
    """
    return jax.tree.map(
        lambda names, leaf: NamedSharding(mesh, _fit(names, tuple(leaf.shape), mesh, rules)),
        nn.get_partition_spec(boxed),
        unbox(boxed),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def fetch(tree: Any) -> Any:
    """Return the arrays of `tree` as NumPy arrays. On several processes, each gets the complete arrays."""

    def replicated(leaf: jax.Array) -> jax.Array:
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        assert isinstance(leaf.sharding, NamedSharding)
        return jax.jit(lambda x: x, out_shardings=NamedSharding(leaf.sharding.mesh, PartitionSpec()))(leaf)

    return jax.device_get(jax.tree.map(replicated, tree))


def bytes_per_device(tree: Any) -> int:
    """Return the bytes per device of a tree of sharded arrays, or of ShapeDtypeStructs with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _fit(names: PartitionSpec, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    """Return the mesh axes of each dimension such that shards have equal sizes and, if possible, full tiles."""
    logical = tuple(names) + (None,) * (len(shape) - len(names))
    requested = tuple(spmd.logical_to_mesh_axes(logical, rules))
    fitted = [() if entry is None else (entry,) if isinstance(entry, str) else tuple(entry) for entry in requested]

    def divides(dimension: int, entry: tuple[str, ...], *, rows: int = 1) -> bool:
        return shape[dimension] % (rows * math.prod(mesh.shape[name] for name in entry)) == 0

    # A scan slices the layers axis: sharded along it, each layer would be stored on few devices only.
    candidates = [i for i, name in enumerate(logical) if name != LAYERS]
    for dimension, entry in enumerate(list(fitted)):
        rows = _TILE if entry == (FSDP,) else 1  # tensor parallelism splits by heads, which may be few
        if not divides(dimension, entry, rows=rows):
            fitted[dimension] = ()
            larger_first = sorted(candidates, key=lambda i: (len(fitted[i]), -shape[i]))
            possible = [i for i in larger_first if divides(i, fitted[i] + entry, rows=rows)]
            possible += [i for i in (dimension, *larger_first) if divides(i, fitted[i] + entry)]
            if possible:
                fitted[possible[0]] += entry
    return PartitionSpec(*(entry if len(entry) > 1 else entry[0] if entry else None for entry in fitted))
