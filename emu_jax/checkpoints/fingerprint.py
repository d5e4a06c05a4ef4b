"""A number for each array that changes with any one bit of it, so that a step damaged on disk is told from a good one.

It is the sum of the array's bits taken as unsigned integers, modulo 2^32: exact, and the same on every mesh.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


def _sum(leaf: jax.Array) -> jax.Array | np.uint32:
    """On the devices; by NumPy where they are this host's CPU, which needs no program for each shape."""
    if leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices()):
        host = np.asarray(leaf)
        return np.sum(host.view(_unsigned(leaf.dtype)) if _is_float(leaf.dtype) else host, dtype=np.uint32)
    return _sum_on_devices(leaf)


@jax.jit
def _sum_on_devices(leaf: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(leaf, _unsigned(leaf.dtype)) if _is_float(leaf.dtype) else leaf
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)


def _is_float(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _unsigned(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"uint{8 * dtype.itemsize}")
