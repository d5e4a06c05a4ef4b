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

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.config_file import read_config
from emu_jax.compile_analysis.program import GenerationShape
from emu_jax.compile_analysis.programs import PROGRAMS
from emu_jax.compile_analysis.report import compile_report, format_report
from emu_jax.compile_analysis.topologies import parse_topology
from emu_jax.errors import UserError
from emu_jax.io.files import write_json, write_text
from emu_jax.sharding.mesh import parse_mesh


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("--topology", required=True, help="TPU slice, such as v5p:4x4x4")
    parser.add_argument("--slices", type=int, default=1, help="number of slices, connected by the data center network")
    parser.add_argument("--mesh", help="mesh, such as data:1,fsdp:64,tensor:1; default: the config's")
    parser.add_argument("--program", choices=sorted(PROGRAMS), default="train", help="program to compile")
    parser.add_argument(
        "--rows", type=int, default=GenerationShape.rows, help="generation: prompts or images per batch"
    )
    parser.add_argument("--prompt", type=int, default=GenerationShape.prompt, help="generation: positions per prompt")
    parser.add_argument(
        "--new-tokens", type=int, default=GenerationShape.new_tokens, help="generation: cache slots after the prompt"
    )
    parser.add_argument("--steps", type=int, default=GenerationShape.steps, help="sampling: sampler steps")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--dump-hlo", type=Path, help="write the optimized program to this file")
    arguments, config_words = parser.parse_known_args(argv)
    for name in ("rows", "prompt", "new_tokens", "steps"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(arguments, name)}.")
    topology = parse_topology(arguments.topology, slices=arguments.slices)
    mesh = None if arguments.mesh is None else parse_mesh(arguments.mesh)
    shape = GenerationShape(arguments.rows, arguments.prompt, arguments.new_tokens, arguments.steps)
    program = PROGRAMS[arguments.program](read_config(config_words), shape)
    print(f"compiling {program.name} for {topology}; a 14B step takes minutes", flush=True)
    report = compile_report(program, topology, mesh=mesh)
    print(format_report(report))
    if arguments.json is not None:
        write_json(arguments.json, report.to_json())
        print(f"wrote {arguments.json}")
    if arguments.dump_hlo is not None:
        write_text(arguments.dump_hlo, report.text)
        print(f"wrote {arguments.dump_hlo}")
