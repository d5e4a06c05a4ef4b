"""Import PyTorch weights: the released Emu, a LLaMA and an EVA-CLIP to start from, or a diffusers folder.

  python -m emu_jax import-torch Emu/pytorch_model.bin models/emu --tokenizer llama/tokenizer.model
  python -m emu_jax import-torch Emu-instruct.pt models/emu_instruct --tokenizer llama/tokenizer.model
  python -m emu_jax import-torch Llama-13b EVA01_CLIP_g_14_plus_psz14_s11B.pt models/start     a new Emu from both
  python -m emu_jax import-torch stable-diffusion-v1-5 models/emu                              its visual decoder

SOURCE is a file (.safetensors, .bin, .pt) or a folder with one (sharded or not). The sizes are those of a config.json
next to it, in the release's layout or ours; without one they must be the published sizes. DEST becomes a model
directory for `train`, `generate` and `emu_jax.load`. Parameters that are in no source are initialized and listed. So
are the U-Net's projections of the conditioning, if their width is not that of the Emu's embeddings (Stable Diffusion:
768).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emu_jax.cli.arguments import ArgumentParser, LocalText
from emu_jax.cli.imports import heavy_imports
from emu_jax.cli.progress import byte_progress


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("sources", metavar="SOURCE", nargs="+", type=Path, help="checkpoint file or folder")
    parser.add_argument("destination", metavar="DEST", type=Path, help="model directory to write")
    parser.add_argument(
        "--config", type=LocalText, metavar="FILE", help="config.json with the sizes, or the preset emu_14b"
    )
    parser.add_argument("--tokenizer", metavar="FILE", type=Path, help="SentencePiece model (default: next to SOURCE)")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="interpolate positions to this image size")
    parser.add_argument(
        "--embedding-width",
        type=int,
        metavar="D",
        help="width of the U-Net's conditioning (default: that of the Emu)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of initialized parameters (default 0)")
    arguments = parser.parse_args(argv)

    with heavy_imports():
        from emu_jax.convert.diffusion_folder import UNET, VAE, has_decoder_part, part_bytes
        from emu_jax.convert.import_torch import prepare_import
        from emu_jax.convert.sources import has_emu
        from emu_jax.convert.visual_decoder import import_visual_decoder

    decoders = [source for source in arguments.sources if has_decoder_part(source)]
    models = [source for source in arguments.sources if source not in decoders or has_emu(source)]
    if models:
        prepared = prepare_import(
            models,
            config=arguments.config,
            tokenizer=arguments.tokenizer,
            image_size=arguments.image_size,
            seed=arguments.seed,
        )
        with byte_progress("importing", total=prepared.nbytes) as progress:
            prepared.write(arguments.destination, progress=progress)
        match = prepared.match
        for note in match.notes:
            print(note)
        print_list("parameters are in no source and were initialized", match.initialized)
        if match.unused:
            print(f"not used by Emu, saved for export: {', '.join(match.unused)}")
        if prepared.tokenizer is None:
            print("no tokenizer.model next to the source. Pass --tokenizer here, or tokenizer= to emu_jax.load")
        size = f"{len(match.parameters)} parameters ({prepared.nbytes / 1e9:.2f} GB)"
        print(f"{size} are in {arguments.destination}")
    for source in decoders:
        total = part_bytes(source, UNET) + part_bytes(source, VAE)
        with byte_progress("importing the visual decoder", total=total) as progress:
            decoder = import_visual_decoder(
                source,
                arguments.destination,
                width=arguments.embedding_width,
                seed=arguments.seed,
                progress=progress,
            )
        print_list("projections of the U-Net have a new input width and were initialized", decoder.initialized)
        print(f"the visual decoder ({', '.join(decoder.parts)}) is in {arguments.destination / 'visual_decoder'}")


def print_list(description: str, names: Sequence[str]) -> None:
    """Print the number of names and the names; nothing if there are none."""
    if names:
        print(f"{len(names)} {description}:")
        print("\n".join(f"  {name}" for name in names))
