"""Measurements and checks of a machine before a run."""

import importlib.util
import json
import os
import platform
import time
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emu_jax.hardware import tpu_attached

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "libtpu")
INSTALL = "pip install -c constraints.txt -e '.[{}]'"
_MEGABYTES = 16  # size of each transfer
_VERSIONS_BYTES = 1024  # length of each process's message in `_different_versions`


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of PACKAGES; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def find_problems(versions: dict[str, str | None]) -> list[str]:
    """Return one line for each problem of the installation. Call it on all processes at the same time."""
    problems = []
    backend = jax.default_backend()
    if tpu_attached() and backend != "tpu":
        problems.append(f"this is a TPU machine, but JAX finds no TPU; install {INSTALL.format('tpu')}")
    if epath.Path("/dev/nvidia0").exists() and backend != "gpu":
        problems.append(f"this machine has a GPU, but JAX finds none; install {INSTALL.format('gpu')}")
    if importlib.util.find_spec("libtpu") is None and backend == "tpu":
        problems.append("the package libtpu is not installed; the system's libtpu may not fit this version of JAX")
    workers = [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    if len(workers) > jax.process_count():
        problems.append(
            f"{len(workers) - jax.process_count()} of {len(workers)} workers are missing; start the command on all"
        )
    return problems + _different_versions(versions)


def host_to_device() -> float:
    """Measure the copy of one array from host to device, in GB/s."""
    block = np.ones(_MEGABYTES << 18, np.float32)
    jax.block_until_ready(jax.device_put(block[:1024]))
    start = time.monotonic()
    jax.block_until_ready(jax.device_put(block, jax.local_devices()[0]))
    return block.nbytes / 1e9 / (time.monotonic() - start)


def all_reduce(mesh: Mesh) -> float:
    """Measure a sum over all devices of the mesh, in GB/s that each device contributes."""
    sharded, replicated = (NamedSharding(mesh, spec) for spec in (PartitionSpec(tuple(mesh.shape)), PartitionSpec()))
    rows, columns = mesh.size, (_MEGABYTES << 18) // 8
    make = jax.jit(lambda: jnp.ones((rows, columns), jnp.float32), out_shardings=sharded)
    add = jax.jit(lambda x: x.sum(0), out_shardings=replicated)
    blocks = make()
    jax.block_until_ready(add(blocks))
    start = time.monotonic()
    jax.block_until_ready(add(blocks))
    return columns * 4 / 1e9 / (time.monotonic() - start)


def write_speed(directory: str) -> float:
    """Measure the writing of a temporary file in a local or remote folder, in MB/s.

    Raises:
      OSError: the folder cannot be written.
    """
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".doctor-{jax.process_index()}"
    content = np.random.default_rng(0).bytes(_MEGABYTES << 20)
    start = time.monotonic()
    try:
        path.write_bytes(content)
        return _MEGABYTES / (time.monotonic() - start)
    finally:
        path.unlink(missing_ok=True)


def _different_versions(versions: dict[str, str | None]) -> list[str]:
    """Return a line for each process that has other versions than process 0."""
    if jax.process_count() == 1:
        return []
    message = json.dumps(versions).encode().ljust(_VERSIONS_BYTES)[:_VERSIONS_BYTES]
    messages = multihost_utils.process_allgather(np.frombuffer(message, np.uint8))
    first, *others = (json.loads(bytes(row)) for row in messages)
    problems = []
    for process, other in enumerate(others, start=1):
        different = [
            f"{name} {other[name] or 'not installed'} ({first[name] or 'not installed'})"
            for name in first
            if other[name] != first[name]
        ]
        if different:
            problems.append(
                f"process {process} has other versions than process 0 (in parentheses): {', '.join(different)}; "
                "install the same versions on every worker"
            )
    return problems
