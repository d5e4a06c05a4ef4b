"""Train a small Emu and its visual decoder on a synthetic world, and report what it has learned.

    python -m emu_jax demo                  23 minutes on two cores
    python -m emu_jax demo --fast           three minutes: every phase with few steps

WORKDIR receives the data sets in the formats of the real ones (world/), the prepared sets (data/), a folder for each
training run, the final model (config.json, params/, tokenizer.model, visual_decoder/), metrics.json and report.html.
Every command that the demo runs is printed first. After an interruption the same command resumes.
"""

from __future__ import annotations

from pathlib import Path

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.imports import heavy_imports
from emu_jax.cli.progress import count_progress


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="default: runs/demo, or runs/demo_fast with --fast")
    parser.add_argument("--fast", action="store_true", help="run every phase with few steps, as a check")
    arguments = parser.parse_args(argv)

    with heavy_imports():
        from emu_jax.demo.phases import run_demo

    workdir = arguments.workdir or Path("runs/demo_fast" if arguments.fast else "runs/demo")
    run_demo(workdir, fast=arguments.fast, progress=count_progress)
