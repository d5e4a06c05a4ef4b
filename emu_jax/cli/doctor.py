"""Looks at the machine and says in words what is wrong with it.

    python -m emu_jax doctor
    python -m emu_jax doctor --checkpoints=gs://BUCKET/run --mesh=data:1,fsdp:-1,tensor:1

Prints versions, devices, the mesh, the bandwidth of a collective and of host to device, and how fast the checkpoint
directory is written. On several hosts run it on each at once. Exit code 1 when something is wrong.
"""

from __future__ import annotations

import importlib.util
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
from emu_jax.cli.train import start_processes
from emu_jax.errors import UserError
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.sharding.rules import MESH_AXES

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "libtpu")
MEGABYTES = 16


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("--mesh", default="data:1,fsdp:-1,tensor:1", help="sizes of the axes; -1 is the rest")
    parser.add_argument("--checkpoints", help="a directory to time; nothing is left there")
    a = parser.parse_args(argv)
    sizes = parse_mesh(a.mesh)
    start_processes()
    mesh = make_mesh(sizes)
    versions = {name: version(name) for name in PACKAGES}
    print(f"python {platform.python_version()}  " + "  ".join(f"{k} {v}" for k, v in versions.items() if v))
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


def parse_mesh(text: str) -> MeshConfig:
    """`"data:1,fsdp:-1,tensor:1"`; an axis left out is 1."""
    sizes = dict.fromkeys(MESH_AXES, 1)
    for part in text.split(","):
        name, _, size = part.partition(":")
        if name not in sizes or not size.lstrip("-").isdigit():
            raise UserError(f"--mesh={text} is not understood; write it as data:1,fsdp:-1,tensor:1.")
        sizes[name] = int(size)
    return MeshConfig(**sizes)


def version(package: str) -> str | None:
    """Installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find_problems(versions: dict[str, str | None]) -> list[str]:
    """What is wrong, in words."""
    problems = []
    on_tpu_machine = "TPU_WORKER_ID" in os.environ or epath.Path("/dev/accel0").exists()
    if on_tpu_machine and jax.default_backend() != "tpu":
        problems.append("this is a TPU machine and jax sees no TPU; install it with pip install 'emu-jax[tpu]'")
    on_gpu_machine = epath.Path("/dev/nvidia0").exists()
    if on_gpu_machine and jax.default_backend() != "gpu":
        problems.append("this machine has a GPU and jax sees none; install it with pip install 'emu-jax[gpu]'")
    if importlib.util.find_spec("libtpu") is None and jax.default_backend() == "tpu":
        problems.append("libtpu is not installed as a package; a system library's version may not fit jax")
    workers = [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    if len(workers) > jax.process_count():
        problems.append(f"{len(workers) - jax.process_count()} of {len(workers)} workers are missing; start all")
    if jax.process_count() > 1:
        mine = np.frombuffer(repr(sorted(versions.items())).encode().ljust(512)[:512], np.uint8)
        everyone = multihost_utils.process_allgather(mine)
        different = [i for i, other in enumerate(everyone) if not np.array_equal(other, everyone[0])]
        if different:
            problems.append(f"processes {different} have other versions of the packages than process 0")
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
