"""Draws what the model will get from a config's data: rows, documents, images, masks, as an HTML page.

    python -m emu_jax inspect-data --config=configs/demo.py:captions --output=data.html
    python -m emu_jax inspect-data --config=configs/tiny.py --batches=20 --config.data.batch.length=256

The batches are those that `train` would read first with the same config. Any field of the config can be set here too.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.config_file import read_flags
from emu_jax.data.loader.inspection import page
from emu_jax.data.loader.pipeline import make_loader
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import UserError
from emu_jax.training.run import read_run_config


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("--config", metavar="FILE", help="config file of a run; --config.field=value changes a field")
    parser.add_argument("--output", type=Path, default=Path("data.html"), help="page to write (default: data.html)")
    parser.add_argument("--batches", type=int, default=8, help="batches to count; the first 32 rows are drawn")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.batches < 1:
        raise UserError(f"--batches must be at least 1, not {arguments.batches}.")
    named = [f"--config={arguments.config}"] if arguments.config else []
    config, _ = read_flags([*named, *rest, f"--workdir={arguments.output.parent}"])
    run = read_run_config(config)
    tokenizer = Tokenizer.load(run.tokenizer, instruct=run.instruct)
    alone = dataclasses.replace(run.data, workers=0, prefetch=0)  # the rows are the same up to the order of workers
    loader = make_loader(alone, tokenizer=tokenizer, seed=run.train.seed)
    batches = list(itertools.islice(loader, arguments.batches))
    text = page(batches, tokenizer=tokenizer, source_names=loader.source_names)
    temporary = arguments.output.with_name(f".{arguments.output.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(arguments.output)
    except OSError as error:
        raise UserError(f"{arguments.output} cannot be written ({error.strerror}).") from None
    print(f"{len(batches)} batches drawn in {arguments.output}")
