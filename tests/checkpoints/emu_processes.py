"""Save and restore the tiny Emu with its optimizer state in one of several processes (see test_processes.py).

    python -m tests.checkpoints.emu_processes DIRECTORY FSDP TENSOR

Prints the fingerprint of the restored arrays, which must be the same in all processes.
"""

import hashlib
import json
import sys
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from emu_jax.checkpoints.fingerprint import fingerprints
from emu_jax.checkpoints.manager import Checkpoints
from emu_jax.checkpoints.model_directory import boxed_shapes
from emu_jax.models.presets import emu_tiny
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.sharding.specs import shardings, unbox
from emu_jax.training.processes import start_processes


def main(directory: str, fsdp: int, tensor: int) -> None:
    start_processes()
    mesh = make_mesh(MeshConfig(data=1, fsdp=fsdp, tensor=tensor))
    boxed = boxed_shapes(emu_tiny(vocab_size=384))
    params = with_shardings(unbox(boxed), shardings(boxed, mesh))
    replicated = NamedSharding(mesh, PartitionSpec())
    adam = jax.eval_shape(optax.adam(1e-3).init, params)
    adam = optax.tree_utils.tree_map_params(
        optax.adam(1e-3), lambda leaf, param: with_sharding(leaf, param.sharding), adam, params,
        transform_non_params=lambda leaf: with_sharding(leaf, replicated),
    )  # fmt: skip
    structs = {"params": params, "optimizer": {"opt_state": adam}}
    arrays = jax.tree.map(random_array, structs)
    checkpoints = Checkpoints(directory)
    if checkpoints.newest() is None:
        checkpoints.save(1, **arrays, data={}, config={})
        checkpoints.wait()
    restored = checkpoints.restore_newest(**structs)
    assert restored is not None
    assert restored.warnings == ()
    found = fingerprints({"params": restored.params, "optimizer": restored.optimizer})
    assert found == fingerprints(arrays)
    checkpoints.close()
    print("fingerprint", hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest(), flush=True)


def with_shardings(shapes: Any, layout: Any) -> Any:
    return jax.tree.map(with_sharding, shapes, layout)


def with_sharding(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def random_array(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Return the same values in every process and on every mesh."""
    values = np.random.default_rng(leaf.size).integers(-9, 9, leaf.shape).astype(leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: values[index])


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
