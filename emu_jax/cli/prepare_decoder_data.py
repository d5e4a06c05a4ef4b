"""Convert captioned images to training examples of the visual decoder: conditions of an Emu, latents of a VAE.

    python -m emu_jax prepare-decoder-data --checkpoint=runs/emu --decoder=sd_v1_5 --sets data/laion_coco \\
        --output=data/decoder

The sets are folders that `prepare-data` wrote. The stage `visual_decoder` reads OUTPUT (`examples` in its config), so
that neither the Emu nor the autoencoder runs while the U-Net trains. A run that computes both in each step gives the
same result, up to the rounding of --store. An example of the paper's size has 393 kB in bfloat16 (786 kB in float32).

If the command was stopped, running it again resumes it. To use several processes or machines, start the command in each
with the same arguments, and with --process-count=N and its own --process-index, from 0 to N - 1.
"""

from __future__ import annotations

from pathlib import Path

from emu_jax.cli.arguments import ArgumentParser, LocalText
from emu_jax.cli.imports import heavy_imports
from emu_jax.errors import UserError

PREDICTED, ENCODED = "predicted", "encoded"  # values of Condition


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, help="the Emu: a model directory or a workdir")
    parser.add_argument("--decoder", required=True, type=Path, help="diffusers folder with the autoencoder")
    parser.add_argument(
        "--sets", required=True, type=LocalText, nargs="+", help="folders of image-text pairs, from prepare-data"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--condition",
        choices=(PREDICTED, ENCODED),
        default=PREDICTED,
        help="predicted: embeddings that Emu generates from the caption (the paper); encoded: of the image",
    )
    parser.add_argument("--image-size", type=int, help="pixels per side of the images (default: the size of the U-Net)")
    parser.add_argument("--max-caption-length", type=int, default=150, help="characters; longer captions are skipped")
    parser.add_argument("--limit", type=int, help="maximum number of documents of each set")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--allow-upscale", action="store_true", help="enlarge stored images that are smaller, instead of refusing them"
    )
    parser.add_argument("--store", choices=("bfloat16", "float32"), default="bfloat16", help="dtype of the examples")
    parser.add_argument("--shard-size", type=int, default=1024, help="documents per shard; a stopped run repeats one")
    parser.add_argument("--process-index", type=int, default=0, help="number of this process")
    parser.add_argument("--process-count", type=int, default=1, help="processes that write OUTPUT together")
    a = parser.parse_args(argv)
    if not 0 <= a.process_index < a.process_count:
        raise UserError(f"--process-index must be from 0 to {a.process_count - 1}, not {a.process_index}.")
    for name in ("shard_size", "batch_size", "max_caption_length"):
        if getattr(a, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(a, name)}.")

    with heavy_imports():
        from emu_jax.cli.progress import count_progress
        from emu_jax.convert.visual_decoder import load_visual_decoder
        from emu_jax.data.loader.visual_decoder_examples import Condition
        from emu_jax.generation.api import load
        from emu_jax.generation.decoder_examples import prepare_examples

    decoder = load_visual_decoder(a.decoder)
    factor = decoder.vae.config.factor
    size = decoder.unet.config.sample_size * factor if a.image_size is None else a.image_size
    if size < 1 or size % factor:
        raise UserError(f"--image-size must be a multiple of {factor}, not {size}.")
    emu = load(a.checkpoint)
    with count_progress("conditions and latents") as progress:
        count = prepare_examples(
            emu,
            decoder,
            sets=a.sets,
            output=a.output,
            condition=Condition(a.condition),
            image_size=size,
            max_caption_length=a.max_caption_length,
            limit=a.limit,
            batch_size=a.batch_size,
            allow_upscale=a.allow_upscale,
            shard_size=a.shard_size,
            dtype=a.store,
            process_index=a.process_index,
            process_count=a.process_count,
            progress=progress,
        )
    if count is None:
        print(f"The shards of this process are complete; {a.output} is complete after the other processes.")
    else:
        print(f"{count} examples in {a.output}")
