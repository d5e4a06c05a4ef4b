"""Write what a tuning run changed as an adapter of a few MB, or print what an adapter holds.

    python -m emu_jax export-adapter runs/instruct adapters/instruct
    python -m emu_jax export-adapter runs/instruct/checkpoints/500 adapters/step500 --base models/emu
    python -m emu_jax export-adapter adapters/instruct
    python -m emu_jax export-adapter adapters/instruct out/peft --base models/emu --format peft
    python -m emu_jax export-adapter out/peft adapters/imported --base models/emu

An adapter has the LoRA matrices, every other parameter that differs from the base, and the rows of new tokens. It fits
only the base that it was trained on. generate, chat, evaluate and serve load it with --adapter.
The format peft has adapter_config.json and adapter_model.safetensors. If only the LLaMA was tuned, peft opens it with
the model that export-torch --format huggingface writes. The last command converts such a folder to an adapter.
"""

from __future__ import annotations

from pathlib import Path

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.imports import heavy_imports
from emu_jax.errors import UserError


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="run, step, model directory, or adapter (also peft's)"
    )
    parser.add_argument("destination", metavar="DEST", type=Path, nargs="?", help="folder to write")
    parser.add_argument("--base", type=Path, metavar="DIR", help="base model (default: the run's train.warm_start)")
    parser.add_argument("--format", choices=("emu", "peft"), default="emu", help="of DEST (default: emu)")
    arguments = parser.parse_args(argv)

    with heavy_imports():
        from emu_jax.checkpoints.adapter import DESCRIPTION, check_base, make_adapter, read_adapter, save_adapter
        from emu_jax.checkpoints.model_directory import params_directory
        from emu_jax.checkpoints.step import step_config
        from emu_jax.convert.peft_adapter import PEFT_CONFIG, read_peft_adapter, save_peft_adapter
        from emu_jax.io.paths import absolute_path

    checkpoint, destination, base = arguments.checkpoint, arguments.destination, arguments.base
    is_adapter, is_peft = (checkpoint / DESCRIPTION).is_file(), (checkpoint / PEFT_CONFIG).is_file()
    if destination is None and not is_peft:
        print(read_adapter(checkpoint).summary())
        return
    if (is_adapter and arguments.format == "emu") or (is_peft and arguments.format == "peft"):
        raise UserError(f"{checkpoint} is an adapter in this format already. Copy it.")
    if base is None:
        step = params_directory(checkpoint)
        saved = None if step is None else step_config(absolute_path(step))
        base = ((saved or {}).get("train") or {}).get("warm_start")
        if base is None:
            raise UserError(f"{checkpoint} does not name its base. Name it with --base.")
    if is_adapter:
        adapter = read_adapter(checkpoint)
        check_base(adapter, base, source=checkpoint)
    elif is_peft:
        adapter = read_peft_adapter(checkpoint, base=base)
    else:
        adapter = make_adapter(checkpoint, base)
    if destination is None:
        print(adapter.summary())
        return
    if arguments.format == "peft":
        save_peft_adapter(destination, adapter, base=base)
    else:
        save_adapter(destination, adapter)
    print(f"{destination}: {adapter.summary()}")
