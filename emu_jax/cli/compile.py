"""Compiles a program for a TPU pod without one: does it fit, what does it move, how fast may it be.

    python -m emu_jax compile --config=configs/pretrain_14b.py --topology=v5p:4x4x4
    python -m emu_jax compile --config=configs/pretrain_14b.py --topology=v5e:16x16 --mesh=data:1,fsdp:256,tensor:1 \\
        --json=step.json --dump-hlo=step.hlo
    python -m emu_jax compile --config=configs/pretrain_14b.py --topology=v5e:2x4 --stage=decode --rows=16

The real TPU compiler runs on this machine's CPU (pip install -e '.[compile]'); no TPU is asked for. Any field of the
config can be set on the command line, as for `train`. Stages: `train` is the step of the config's own stage; `prefill`,
`decode` and `images` generate with its model; `sampling` paints with Stable Diffusion v1.5's U-Net from its embeddings.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.config_file import read_config
from emu_jax.compile_analysis.programs import PROGRAMS, Load
from emu_jax.compile_analysis.report import compile_report, page
from emu_jax.compile_analysis.topologies import read_topology
from emu_jax.errors import UserError
from emu_jax.sharding.mesh import read_mesh


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("--topology", required=True, help="such as v5p:4x4x4")
    parser.add_argument("--slices", type=int, default=1, help="so many of them, joined by the data centre's network")
    parser.add_argument("--mesh", type=read_mesh, help="such as data:1,fsdp:64,tensor:1; default: the config's")
    parser.add_argument("--stage", choices=sorted(PROGRAMS), default="train", help="which program")
    parser.add_argument("--rows", type=int, default=Load.rows, help="prompts or pictures at once, when generating")
    parser.add_argument("--prompt", type=int, default=Load.prompt, help="places in a prompt")
    parser.add_argument("--new-tokens", type=int, default=Load.new_tokens, help="room for what is written")
    parser.add_argument("--steps", type=int, default=Load.steps, help="of the sampler")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--dump-hlo", type=Path, help="write the optimised program here")
    arguments, config_words = parser.parse_known_args(argv)
    for name in ("rows", "prompt", "new_tokens", "steps"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(arguments, name)}.")
    topology = read_topology(arguments.topology, slices=arguments.slices)
    load = Load(arguments.rows, arguments.prompt, arguments.new_tokens, arguments.steps)
    program = PROGRAMS[arguments.stage](read_config(config_words), load)
    print(f"compiling {program.name} for {topology}; a 14B step takes minutes", flush=True)
    report = compile_report(program, topology, mesh=arguments.mesh)
    print(page(report))
    if arguments.json is not None:
        _write(arguments.json, json.dumps(report.to_json(), indent=1) + "\n")
    if arguments.dump_hlo is not None:
        _write(arguments.dump_hlo, report.text)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}).") from None
    print(f"wrote {path}")
