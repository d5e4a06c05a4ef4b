"""Check this machine: versions, devices, mesh, speed of transfers and of the run's folder.

    python -m emu_jax doctor
    python -m emu_jax doctor --workdir=gs://BUCKET/run --mesh=data:1,fsdp:-1,tensor:1

On several hosts, start it on all of them at the same time. The exit code is 1 if there is a problem.
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
        help="folder whose write speed is measured; no file is left there",
    )
    parser.add_argument(
        "--wait",
        type=at_least(1),
        default=120,
        metavar="SECONDS",
        help="time to wait for the other processes (default: 120)",
    )
    arguments = parser.parse_args(argv)

    with heavy_imports():
        import jax

        from emu_jax.sharding.mesh import make_mesh, parse_mesh
        from emu_jax.training import diagnostics
        from emu_jax.training.processes import start_processes

    sizes = parse_mesh(arguments.mesh)
    start_processes(timeout=arguments.wait)
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
    problems = diagnostics.find_problems(versions)
    if arguments.workdir:
        try:
            print(f"writing to {arguments.workdir}: {diagnostics.write_speed(arguments.workdir):.0f} MB/s")
        except (ImportError, OSError) as error:
            problems.append(f"cannot write to {arguments.workdir} ({getattr(error, 'strerror', None) or error})")
    for problem in problems:
        print(f"PROBLEM: {problem}.")
    if problems:
        sys.exit(1)
    print("OK")
