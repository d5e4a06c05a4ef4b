"""Display a config's data as the model receives it: rows, documents, images, masks; count a step.

    python -m emu_jax inspect-data --config=configs/demo.py:captions --output=data.html
    python -m emu_jax inspect-data --config=configs/tiny.py --batches=20 --config.data.batch.length=256

The rows are the first that `train` would read with the same config. Any field of the config can be set here, too. The
command also prints the documents, tokens and images of a step next to those of the recipe, if the config follows one,
and the image slots per row that fit the data best.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.imports import heavy_imports
from emu_jax.errors import UserError

_ROWS = 32  # of a batch
_MAX_ROWS = 2048
_DISPLAYED = 256  # rows on the page, of which 32 are shown in full


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__name__, __doc__)
    parser.add_config_argument()
    parser.add_argument("--output", type=Path, default=Path("data.html"), help="page to write (default: data.html)")
    parser.add_argument(
        "--batches", type=int, default=8, help="batches to count (at most 2,048 rows); the first 32 rows are displayed"
    )
    arguments, overrides = parser.parse_config_args(argv)
    if arguments.batches < 1:
        raise UserError(f"--batches must be at least 1, not {arguments.batches}.")
    with heavy_imports():
        from emu_jax.cli.config_file import read_config
        from emu_jax.data.batch import Batch
        from emu_jax.data.loader.inspection import page
        from emu_jax.data.loader.pipeline import make_loader
        from emu_jax.data.loader.row_sizes import Size, describe_step, document_sizes
        from emu_jax.data.tokenizer import Tokenizer
        from emu_jax.io.files import write_text
        from emu_jax.training.runs.emu import read_emu_config

    run = read_emu_config(read_config(arguments.config, overrides))
    tokenizer = Tokenizer.load(run.tokenizer, instruct=run.instruct)
    batch = run.data.batch
    total = min(arguments.batches * batch.batch_size, max(_MAX_ROWS, batch.batch_size))
    # A few rows at a time, because a batch of a large run does not fit in memory; workers would change their order.
    rows = min(batch.batch_size, _ROWS)
    data = dataclasses.replace(run.data, workers=0, prefetch=0, batch=dataclasses.replace(batch, batch_size=rows))
    loader = make_loader(data, tokenizer=tokenizer, seed=run.train.seed)
    displayed: list[Batch] = []
    sizes: list[Size] = []
    counted = 0
    for one in itertools.islice(loader, math.ceil(total / rows)):
        if len(displayed) * rows < _DISPLAYED:
            displayed.append(one)
        sizes += document_sizes(one, image_token_id=tokenizer.image_token_id)
        counted += int((one["segment_ids"].max(axis=1) > 0).sum())
    if not displayed:
        raise UserError("The sets of this config have no documents.")
    write_text(arguments.output, page(displayed, tokenizer=tokenizer, source_names=loader.source_names))
    print(f"{counted} rows counted, the first displayed in {arguments.output}")
    for line in describe_step(
        sizes,
        rows=counted,
        batch_size=batch.batch_size,
        length=batch.length,
        max_images=batch.max_images,
        samples_per_step=run.samples_per_step,
        pool=run.data.pool,
    ):
        print(line)
