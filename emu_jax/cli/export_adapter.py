"""Write what a tuning run changed as an adapter of a few MB, or print what an adapter holds.

    python -m emu_jax export-adapter runs/instruct adapters/instruct
    python -m emu_jax export-adapter runs/instruct/checkpoints/500 adapters/step500 --base models/emu
    python -m emu_jax export-adapter adapters/instruct

An adapter has the LoRA matrices, every other parameter that differs from the base, and the rows of new tokens. It fits
only the base that it was trained on. generate, chat, evaluate and serve load it with --adapter.
"""

from __future__ import annotations

from pathlib import Path

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.imports import heavy_imports
from emu_jax.errors import UserError


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="run, step, model directory, or adapter")
    parser.add_argument("destination", metavar="DEST", type=Path, nargs="?", help="folder to write")
    parser.add_argument("--base", type=Path, metavar="DIR", help="base model (default: the run's train.warm_start)")
    arguments = parser.parse_args(argv)

    with heavy_imports():
        from emu_jax.checkpoints.adapter import DESCRIPTION, make_adapter, read_adapter, save_adapter
        from emu_jax.checkpoints.model_directory import params_directory
        from emu_jax.checkpoints.step import step_config
        from emu_jax.io.paths import absolute_path

    if arguments.destination is None:
        print(read_adapter(arguments.checkpoint).summary())
        return
    if (arguments.checkpoint / DESCRIPTION).is_file():
        raise UserError(f"{arguments.checkpoint} is an adapter already. Copy it.")
    base = arguments.base
    if base is None:
        step = params_directory(arguments.checkpoint)
        saved = None if step is None else step_config(absolute_path(step))
        base = ((saved or {}).get("train") or {}).get("warm_start")
        if base is None:
            raise UserError(f"{arguments.checkpoint} does not name its base. Name it with --base.")
    adapter = make_adapter(arguments.checkpoint, base)
    save_adapter(arguments.destination, adapter)
    print(f"{arguments.destination}: {adapter.summary()}")
