"""Compile a program for a TPU pod without a TPU, and report its memory, communication and estimated time.

    python -m emu_jax compile --config=configs/pretrain_14b.py --topology=v5p:4x4x4
    python -m emu_jax compile --config=configs/pretrain_14b.py --topology=v5e:16x16 --mesh=data:1,fsdp:256,tensor:1 \\
        --json=step.json --dump-hlo=step.hlo
    python -m emu_jax compile --config=configs/pretrain_14b.py --topology=v5e:2x4 --program=decode --rows=16

The TPU compiler runs on this machine's CPU (pip install -e '.[compile]'). Any field of the config can be set on the
command line, as in `train`. Programs: `train` is the train step of the config; `prefill`, `decode` and `images`
generate with its model; `sampling` generates images with the U-Net of Stable Diffusion v1.5 from embeddings of Emu.
"""

from __future__ import annotations

from pathlib import Path

from emu_jax.cli.arguments import ArgumentParser, at_least
from emu_jax.cli.imports import heavy_imports
from emu_jax.errors import UserError

PROGRAMS = ("train", "prefill", "decode", "images", "sampling")


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = ArgumentParser(__name__, __doc__)
    parser.add_config_argument()
    parser.add_argument("--topology", required=True, help="TPU slice, such as v5p:4x4x4 or v5p-128")
    parser.add_argument(
        "--slices", type=at_least(1), default=1, help="number of slices, connected by the data center network"
    )
    parser.add_argument("--mesh", help="mesh, such as data:1,fsdp:64,tensor:1; default: the config's")
    parser.add_argument("--program", choices=PROGRAMS, default="train", help="program to compile (default: train)")
    for flag, default, text in (
        ("--rows", 8, "generation: prompts or images per batch"),
        ("--prompt", 512, "generation: positions per prompt"),
        ("--new-tokens", 128, "generation: cache slots after the prompt"),
        ("--steps", 50, "sampling: sampler steps"),
    ):
        parser.add_argument(flag, type=at_least(1), default=default, help=f"{text} (default: {default})")
    parser.add_argument("--quantization", choices=("int8",), help="generation: of the kernels (default: none)")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--dump-hlo", type=Path, help="write the optimized program to this file")
    arguments, overrides = parser.parse_config_args(argv)

    with heavy_imports():
        from emu_jax.cli.config_file import read_config
        from emu_jax.compile_analysis import programs
        from emu_jax.compile_analysis.program import GenerationShape
        from emu_jax.compile_analysis.report import HOW_TO_FIT, compile_report, format_report
        from emu_jax.compile_analysis.topologies import parse_topology
        from emu_jax.convert.load import Quantization
        from emu_jax.io.files import write_json, write_text
        from emu_jax.sharding.mesh import parse_mesh

    topology = parse_topology(arguments.topology, slices=arguments.slices)
    mesh = None if arguments.mesh is None else parse_mesh(arguments.mesh)
    quantization = None if arguments.quantization is None else Quantization.named(arguments.quantization)
    shape = GenerationShape(
        arguments.rows, arguments.prompt, arguments.new_tokens, arguments.steps, quantization=quantization
    )
    program = programs.PROGRAMS[arguments.program](read_config(arguments.config, overrides), shape)
    print(f"compiling {program.name} for {topology}; a 14B step takes minutes", flush=True)
    report = compile_report(program, topology, mesh=mesh)
    print(format_report(report))
    if arguments.json is not None:
        write_json(arguments.json, report.to_json())
        print(f"wrote {arguments.json}")
    if arguments.dump_hlo is not None:
        write_text(arguments.dump_hlo, report.text)
        print(f"wrote {arguments.dump_hlo}")
    if not report.memory.fits:
        raise UserError(f"{program.name} does not fit on {topology}. {HOW_TO_FIT}")
