"""Write an HTML page that displays a config's data as the model receives it: rows, documents, images, masks.

    python -m emu_jax inspect-data --config=configs/demo.py:captions --output=data.html
    python -m emu_jax inspect-data --config=configs/tiny.py --batches=20 --config.data.batch.length=256

The batches are the first that `train` would read with the same config. Any field of the config can be set here, too.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.imports import heavy_imports
from emu_jax.errors import UserError


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__name__, __doc__)
    parser.add_config_argument()
    parser.add_argument("--output", type=Path, default=Path("data.html"), help="page to write (default: data.html)")
    parser.add_argument("--batches", type=int, default=8, help="batches to count; the first 32 rows are displayed")
    arguments, overrides = parser.parse_config_args(argv)
    if arguments.batches < 1:
        raise UserError(f"--batches must be at least 1, not {arguments.batches}.")
    with heavy_imports():
        from emu_jax.cli.config_file import read_config
        from emu_jax.data.loader.inspection import page
        from emu_jax.data.loader.pipeline import make_loader
        from emu_jax.data.tokenizer import Tokenizer
        from emu_jax.io.files import write_text
        from emu_jax.training.runs.emu import read_emu_config

    run = read_emu_config(read_config(arguments.config, overrides))
    tokenizer = Tokenizer.load(run.tokenizer, instruct=run.instruct)
    data = dataclasses.replace(run.data, workers=0, prefetch=0)  # workers would only change the order of the rows
    loader = make_loader(data, tokenizer=tokenizer, seed=run.train.seed)
    batches = list(itertools.islice(loader, arguments.batches))
    write_text(arguments.output, page(batches, tokenizer=tokenizer, source_names=loader.source_names))
    print(f"{len(batches)} batches displayed in {arguments.output}")
