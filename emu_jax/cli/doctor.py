"""Check this machine: versions, devices, mesh, speed of transfers, and checkpoints in the run's folder.

    python -m emu_jax doctor
    python -m emu_jax doctor --workdir=gs://BUCKET/run --mesh=data:1,fsdp:-1,tensor:1
    python -m emu_jax doctor --workdir=gs://BUCKET/run --config=configs/pretrain_14b.py

On several hosts, start it on all of them at the same time: it compares their versions, code, config and train step, and
saves and restores a tree that is sharded over all of them. The exit code is 1 if there is a problem, or if a process
does not answer in time.
"""

from __future__ import annotations

import sys

from emu_jax.cli.arguments import ArgumentParser, PathOrURL, at_least
from emu_jax.cli.imports import heavy_imports


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument(
        "--mesh",
        default="data:1,fsdp:-1,tensor:1",
        metavar="SIZES",
        help="sizes of the mesh axes; -1 is the rest (default: data:1,fsdp:-1,tensor:1)",
    )
    parser.add_argument(
        "--workdir",
        type=PathOrURL,
        metavar="DIR",
        help="folder to test with a write and with a checkpoint; no file is left there. All hosts must reach it",
    )
    parser.add_argument(
        "--wait",
        type=at_least(1),
        default=120,
        metavar="SECONDS",
        help="time limit of each wait for the other processes (default: 120)",
    )
    parser.add_argument(
        "--config", metavar="FILE[:ARGUMENT]", help="config of a run to compare on all hosts, with its train step"
    )
    arguments, overrides = parser.parse_config_args(argv)

    with heavy_imports():
        import jax

        from emu_jax.cli.config_file import read_config
        from emu_jax.errors import UserError
        from emu_jax.sharding.mesh import make_mesh, parse_mesh
        from emu_jax.training import diagnostics
        from emu_jax.training.processes import start_processes
        from emu_jax.waiting import LostProcessError, WaitConfig, limit_waits

    sizes = parse_mesh(arguments.mesh)
    config = read_config(arguments.config, overrides) if arguments.config else None
    start_processes(timeout=arguments.wait)
    limit_waits(WaitConfig(seconds=arguments.wait, seconds_after_signal=arguments.wait))
    mesh = make_mesh(sizes)
    versions = diagnostics.versions()
    print("  ".join(f"{name} {version}" for name, version in versions.items() if version))
    print(
        f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} of {jax.device_count()} "
        f"devices: {jax.devices()[0].device_kind} ({jax.default_backend()})"
    )
    print("mesh " + " x ".join(f"{name}:{size}" for name, size in mesh.shape.items()))
    print(
        f"host to device {diagnostics.host_to_device():.2f} GB/s, "
        f"all-reduce {diagnostics.all_reduce(mesh):.2f} GB/s per device"
    )
    programs = {"code": diagnostics.source_digest()}
    if config is not None:
        programs |= diagnostics.program_of(config)
    problems = diagnostics.find_problems() + diagnostics.find_differences(versions, programs)
    if arguments.workdir:
        try:
            print(f"writing to {arguments.workdir}: {diagnostics.write_speed(arguments.workdir):.0f} MB/s")
        except (ImportError, OSError) as error:
            problems.append(f"cannot write to {arguments.workdir} ({getattr(error, 'strerror', None) or error})")
        else:
            try:
                diagnostics.save_and_restore(arguments.workdir, mesh)
                print(f"saved and restored a sharded checkpoint in {arguments.workdir}")
            except LostProcessError:
                raise
            except UserError as error:
                problems.append(str(error).rstrip("."))
    for problem in problems:
        print(f"PROBLEM: {problem}.")
    if problems:
        sys.exit(1)
    print("OK")
