"""Turns captioned pictures into what the visual decoder is trained on: conditions from an Emu, latents from a VAE.

    python -m emu_jax prepare-decoder-data --checkpoint=runs/emu --decoder=sd_v1_5 --sets data/laion_coco \\
        --output=data/decoder

The stage `visual_decoder` then reads OUTPUT, and neither the Emu nor the autoencoder runs while the U-Net trains.
"""

from __future__ import annotations

from pathlib import Path

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.progress import count_progress
from emu_jax.diffusion.decoder import load_visual_decoder
from emu_jax.errors import UserError
from emu_jax.generation.api import load
from emu_jax.generation.decoder_examples import Condition, prepare_examples


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, help="the Emu: a model directory or a workdir")
    parser.add_argument("--decoder", required=True, type=Path, help="diffusers folder with the autoencoder")
    parser.add_argument("--sets", required=True, nargs="+", help="folders of image-text pairs, from prepare-data")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--condition",
        choices=[c.value for c in Condition],
        default=Condition.PREDICTED.value,
        help="what Emu generates from the caption (the paper), or its encoder's embeddings of the picture",
    )
    parser.add_argument("--image-size", type=int, default=512, help="pixels a side of the pictures to be learnt")
    parser.add_argument("--max-caption-length", type=int, default=150, help="characters; longer ones are left out")
    parser.add_argument("--limit", type=int, help="at most so many documents of each set")
    parser.add_argument("--batch-size", type=int, default=128)
    a = parser.parse_args(argv)

    decoder = load_visual_decoder(a.decoder)
    if a.image_size < 1 or a.image_size % decoder.vae.config.factor:
        raise UserError(f"--image-size must be a multiple of {decoder.vae.config.factor}, not {a.image_size}.")
    emu = load(a.checkpoint)
    with count_progress("conditions and latents") as progress:
        count = prepare_examples(
            emu,
            decoder,
            sets=a.sets,
            output=a.output,
            condition=Condition(a.condition),
            image_size=a.image_size,
            max_caption_length=a.max_caption_length,
            limit=a.limit,
            batch_size=a.batch_size,
            progress=progress,
        )
    print(f"{count} examples in {a.output}")
