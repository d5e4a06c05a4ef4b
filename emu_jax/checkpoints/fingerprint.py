"""Compute a number for each array that changes with any single bit, to detect checkpoints that are damaged on disk.

The fingerprint is the sum of the array's bits as unsigned integers, modulo 2^32. It is exact and independent of the
sharding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Fingerprints = dict[str, tuple[str, int, list[int]]]  # path -> dtype, sum, shape


def fingerprints(tree: Any) -> Fingerprints:
    """Return the dtype, the fingerprint and the shape of every array, by path.

    Arrays that are sharded over several processes are summed by one program, which all processes must call together.
    One program for each array would leave many collectives in flight at once, which deadlocks when a process has
    several devices.
    """
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    sums = {name: sum_on_host(leaf) for name, leaf in leaves.items() if _is_on_host(leaf)}
    for names in _by_devices({name: leaf for name, leaf in leaves.items() if name not in sums}):
        values = np.asarray(sum_on_devices([leaves[name] for name in names]))
        sums |= dict(zip(names, map(int, values), strict=True))
    return {name: (str(leaf.dtype), sums[name], list(leaf.shape)) for name, leaf in leaves.items()}


def differing(found: Fingerprints, saved: Mapping[str, Any]) -> list[str]:
    """Return the paths whose array is not the saved one. Arrays that were read in another dtype are not compared."""
    return [
        name
        for name, (dtype, value, _) in found.items()
        if name in saved and saved[name][0] == dtype and saved[name][1] != value
    ]


def sum_on_devices(arrays: Sequence[jax.Array]) -> jax.Array:
    """Return the fingerprints of arrays on the same devices as one replicated uint32 `[n]`, by one program."""
    meshes = [array.sharding.mesh for array in arrays if isinstance(array.sharding, NamedSharding)]
    replicated = NamedSharding(meshes[0], PartitionSpec()) if meshes else None
    return jax.jit(_sum_all, out_shardings=replicated)(list(arrays))


def _sum_all(arrays: list[jax.Array]) -> jax.Array:
    bits = [jax.lax.bitcast_convert_type(x, _unsigned(x.dtype)) if _is_float(x.dtype) else x for x in arrays]
    return jnp.stack([jnp.sum(x.astype(jnp.uint32), dtype=jnp.uint32) for x in bits])


def sum_on_host(array: jax.Array | np.ndarray) -> int:
    """Return the fingerprint of an array on the host. It is computed with NumPy, which compiles nothing."""
    host = np.asarray(array)
    return int(np.sum(host.view(_unsigned(array.dtype)) if _is_float(array.dtype) else host, dtype=np.uint32))


def _is_on_host(array: jax.Array | np.ndarray) -> bool:
    if isinstance(array, np.ndarray):
        return True
    return array.is_fully_addressable and all(device.platform == "cpu" for device in array.devices())


def _by_devices(leaves: Mapping[str, jax.Array]) -> list[list[str]]:
    """Group the names of arrays by their devices, in the same order on every process."""
    groups: dict[frozenset, list[str]] = {}
    for name, leaf in leaves.items():
        groups.setdefault(frozenset(leaf.sharding.device_set), []).append(name)
    return list(groups.values())


def _is_float(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _unsigned(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"uint{8 * dtype.itemsize}")
