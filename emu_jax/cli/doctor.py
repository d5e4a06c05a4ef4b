"""Looks at the machine and says in words what is wrong with it.

    python -m emu_jax doctor
    python -m emu_jax doctor --checkpoints=gs://BUCKET/run --mesh=data:1,fsdp:-1,tensor:1

Prints versions, devices, the mesh, the bandwidth of a collective and of host to device, and how fast the checkpoint
directory is written. On several hosts run it on each at once. Exit code 1 when something is wrong.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
import time
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.hardware import tpu_attached
from emu_jax.sharding.mesh import make_mesh, parse_mesh
from emu_jax.training.processes import start_processes

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "libtpu")
MEGABYTES = 16
INSTALL = "pip install -c constraints.txt -e '.[{}]'"


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("--mesh", default="data:1,fsdp:-1,tensor:1", help="sizes of the axes; -1 is the rest")
    parser.add_argument("--checkpoints", help="a directory to time; nothing is left there")
    parser.add_argument("--wait", type=int, default=120, metavar="SECONDS", help="for the other processes")
    a = parser.parse_args(argv)
    sizes = parse_mesh(a.mesh)
    start_processes(timeout=a.wait)
    mesh = make_mesh(sizes)
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    print("  ".join(f"{name} {found}" for name, found in versions.items() if found))
    print(f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} of "
          f"{jax.device_count()} devices: {jax.devices()[0].device_kind} ({jax.default_backend()})")  # fmt: skip
    print("mesh " + " x ".join(f"{name}:{size}" for name, size in mesh.shape.items()))
    print(f"host to device {host_to_device():.2f} GB/s, all-reduce {all_reduce(mesh):.2f} GB/s a device")
    problems = find_problems(versions)
    if a.checkpoints:
        try:
            print(f"{a.checkpoints} is written at {write_speed(a.checkpoints):.0f} MB/s")
        except OSError as error:
            problems.append(f"the checkpoint directory {a.checkpoints} cannot be written ({error.strerror or error})")
    for problem in problems:
        print(f"WRONG: {problem}.")
    if problems:
        sys.exit(1)
    print("all well")


def version(package: str) -> str | None:
    """Installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find_problems(versions: dict[str, str | None]) -> list[str]:
    """What is wrong, in words; all processes ask at once."""
    problems = []
    backend = jax.default_backend()
    if tpu_attached() and backend != "tpu":
        problems.append(f"this is a TPU machine and jax sees no TPU; install it: {INSTALL.format('tpu')}")
    if epath.Path("/dev/nvidia0").exists() and backend != "gpu":
        problems.append(f"this machine has a GPU and jax sees none; install it: {INSTALL.format('gpu')}")
    if importlib.util.find_spec("libtpu") is None and backend == "tpu":
        problems.append("libtpu is not installed as a package; a system library's version may not fit jax")
    workers = [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    if len(workers) > jax.process_count():
        problems.append(f"{len(workers) - jax.process_count()} of {len(workers)} workers are missing; start all")
    return problems + different_versions(versions)


def different_versions(versions: dict[str, str | None]) -> list[str]:
    """A line for each process that has other packages than process 0, as `process 1 has flax 0.12.7, ... 0.12.8`."""
    if jax.process_count() == 1:
        return []
    told = json.dumps(versions).encode()
    everyone = multihost_utils.process_allgather(np.frombuffer(told.ljust(1024)[:1024], np.uint8))
    first, *others = (json.loads(bytes(row)) for row in everyone)
    problems = []
    for process, other in enumerate(others, start=1):
        differing = [
            f"{name} {other[name] or 'not'} ({first[name] or 'not'})" for name in first if other[name] != first[name]
        ]
        if differing:
            problems.append(
                f"process {process} has other packages than process 0 (in brackets): {', '.join(differing)}; "
                "install the same on every worker"
            )
    return problems


def host_to_device() -> float:
    """GB/s of one array to one device."""
    block = np.ones(MEGABYTES << 18, np.float32)
    jax.block_until_ready(jax.device_put(block[:1024]))
    start = time.monotonic()
    jax.block_until_ready(jax.device_put(block, jax.local_devices()[0]))
    return block.nbytes / 1e9 / (time.monotonic() - start)


def all_reduce(mesh: Mesh) -> float:
    """GB/s that each device gives to a sum over the whole mesh."""
    cut, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec(tuple(mesh.shape)), PartitionSpec()))
    rows, columns = mesh.size, (MEGABYTES << 18) // 8
    make = jax.jit(lambda: jnp.ones((rows, columns), jnp.float32), out_shardings=cut)
    add = jax.jit(lambda x: x.sum(0), out_shardings=whole)
    blocks = make()
    jax.block_until_ready(add(blocks))
    start = time.monotonic()
    jax.block_until_ready(add(blocks))
    return columns * 4 / 1e9 / (time.monotonic() - start)


def write_speed(directory: str) -> float:
    """MB/s of a file written there, and removed."""
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".doctor-{jax.process_index()}"
    content = np.random.default_rng(0).bytes(MEGABYTES << 20)
    start = time.monotonic()
    try:
        path.write_bytes(content)
        return MEGABYTES / (time.monotonic() - start)
    finally:
        path.unlink(missing_ok=True)
