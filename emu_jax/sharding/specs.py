"""From logical axis names to shardings: constraints inside the model, shardings of parameter trees outside it."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.core import meta
from flax.linen import spmd
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emu_jax.sharding.rules import DEFAULT_RULES, Rules


def logical_constraint(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Holds activation `x` to the sharding of its logical `axes` (under `jax.set_mesh`; without a mesh a no-op)."""
    return spmd.with_logical_constraint(x, tuple(axes), rules=DEFAULT_RULES, fallback=spmd.RulesFallback.RAISE_ERROR)


def unbox(tree: Any) -> Any:
    """The parameters themselves, without the boxes that carry their axis names."""
    return meta.unbox(tree)


def partition_specs(boxed: Any, *, rules: Rules = DEFAULT_RULES) -> Any:
    """PartitionSpec of every leaf of a boxed tree (arrays or shapes); a leaf without a box is replicated."""
    logical = nn.get_partition_spec(boxed)
    return jax.tree.map(
        lambda spec: spmd.logical_to_mesh_axes(spec, rules),
        logical,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def shardings(boxed: Any, mesh: Mesh, *, rules: Rules = DEFAULT_RULES) -> Any:
    """NamedSharding on `mesh` of every leaf of a boxed tree.

    A dimension that its mesh axes do not divide is left whole: a toy model's two heads do not shard over four.
    """

    def fit(spec: PartitionSpec, leaf: Any) -> NamedSharding:
        entries = []
        for size, entry in zip(leaf.shape, tuple(spec) + (None,) * (len(leaf.shape) - len(spec)), strict=True):
            names = () if entry is None else (entry,) if isinstance(entry, str) else entry
            parts = 1
            for name in names:
                parts *= mesh.shape[name]
            entries.append(entry if size % parts == 0 else None)
        return NamedSharding(mesh, PartitionSpec(*entries))

    return jax.tree.map(
        fit,
        partition_specs(boxed, rules=rules),
        unbox(boxed),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
