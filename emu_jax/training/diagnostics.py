"""Measurements and checks of a machine before a run."""

import importlib.util
import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import emu_jax
from emu_jax.checkpoints.manager import Checkpoints
from emu_jax.checkpoints.step import digest
from emu_jax.config import to_dict
from emu_jax.errors import UserError
from emu_jax.hardware import tpu_attached
from emu_jax.sharding.mesh import make_mesh
from emu_jax.training.compilation import lower_train_step
from emu_jax.training.optimizer import make_optimizer
from emu_jax.training.runs.registry import open_run
from emu_jax.training.state import abstract_state
from emu_jax.waiting import barrier, exchange, waiting

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "libtpu")
INSTALL = "pip install -c constraints.txt -e '.[{}]'"
_MEGABYTES = 16  # size of each transfer
_ARRAYS = 150  # number of arrays of `save_and_restore`, as in a small Emu


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of PACKAGES; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def find_problems() -> list[str]:
    """Return one line for each problem of the installation."""
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
    return problems


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
    with waiting("all-reduce"):
        blocks = jax.block_until_ready(make())
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


def save_and_restore(directory: str, mesh: Mesh) -> None:
    """Save and restore a tree that is sharded over all devices, as `train` does. Call it on all processes.

    Raises:
      UserError: the folder cannot be written, a process cannot read what the others wrote, or an array differs.
    """
    folder = epath.Path(directory) / ".doctor-checkpoints"
    sharded, replicated = (NamedSharding(mesh, spec) for spec in (PartitionSpec(tuple(mesh.shape)), PartitionSpec()))
    shapes = {
        "params": {
            f"array_{i}": jax.ShapeDtypeStruct((mesh.size, i + 1), jnp.float32, sharding=sharded)
            for i in range(_ARRAYS)
        },
        "optimizer": {"count": jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)},
    }
    make = lambda: jax.tree.map(lambda x: jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), shapes)
    with waiting("creation of the arrays"):
        tree = jax.block_until_ready(jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, shapes))())
    checkpoints = Checkpoints(folder)
    try:
        checkpoints.save(1, **tree, data={}, config={})
        checkpoints.wait()
        restored = checkpoints.restore_newest(**shapes)
        if restored is None:
            raise UserError(f"process {jax.process_index()} does not find the checkpoint in {folder}")
    finally:
        checkpoints.close()
        barrier("end of the restore")
        if jax.process_index() == 0 and folder.exists():
            folder.rmtree()


def program_of(config: Any) -> dict[str, str]:
    """Return the checksums of a run's config, and of its train step before compilation.

    Raises:
      UserError: the config is not valid on this host.
    """
    run = open_run(config)
    mesh = make_mesh(run.train.mesh)
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(run.train.optimizer, steps=run.train.steps)
        state = abstract_state(run.stage, optimizer, config=run.train.optimizer, mesh=mesh)
        step = lower_train_step(run.train, stage=run.stage, state=state, mesh=mesh).as_text()
    return {"config": digest(to_dict(run.config)), "train step": digest(step)}


def source_digest() -> str:
    """Return the checksum of the source of emu_jax."""
    package = Path(emu_jax.__file__).parent
    return digest({str(path.relative_to(package)): path.read_text() for path in sorted(package.rglob("*.py"))})


def find_differences(versions: dict[str, str | None], programs: dict[str, str]) -> list[str]:
    """Return a line for each process that differs from process 0 in versions, or in a checksum of `programs`."""
    values = [json.loads(text) for text in exchange("comparison of the processes", json.dumps([versions, programs]))]
    first_versions, first_programs = values[0]
    problems = []
    for process, (other, program) in enumerate(values[1:], start=1):
        different = [
            f"{name} {other[name] or 'not installed'} ({first_versions[name] or 'not installed'})"
            for name in first_versions
            if other[name] != first_versions[name]
        ]
        if different:
            problems.append(
                f"process {process} has other versions than process 0 (in parentheses): {', '.join(different)}; "
                "install the same versions on every worker"
            )
        changed = [name for name in first_programs if program.get(name) != first_programs[name]]
        if changed:
            problems.append(
                f"process {process} differs from process 0 in: {', '.join(changed)}; copy the same code, configs and "
                "tokenizer to every worker"
            )
    return problems
