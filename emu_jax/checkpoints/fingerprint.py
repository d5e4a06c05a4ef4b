"""A number for each array that changes with any one bit of it, so that a step damaged on disk is told from a good one.

It is the sum of the array's bits taken as unsigned integers, modulo 2^32: exact, and the same on every mesh.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Fingerprints = dict[str, tuple[str, int]]


def fingerprints(tree: Any) -> Fingerprints:
    """Dtype and fingerprint of every array, by path. All processes that hold shards of them must call this together."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    sums = jax.device_get({name: _sum(leaf) for name, leaf in leaves.items()})
    return {name: (str(leaf.dtype), int(sums[name])) for name, leaf in leaves.items()}


def differing(found: Fingerprints, saved: Mapping[str, Any]) -> list[str]:
    """The paths whose array is not the one that was saved; one read in another dtype cannot be told."""
    return [
        name
        for name, (dtype, value) in found.items()
        if name in saved and saved[name][0] == dtype and saved[name][1] != value
    ]


@jax.jit  # once for each shape: all in one program would take longer to compile than to save
def _sum(leaf: jax.Array) -> jax.Array:
    return jnp.sum(_bits(leaf), dtype=jnp.uint32)


def _bits(x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
