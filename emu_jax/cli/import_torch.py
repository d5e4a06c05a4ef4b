"""Bring PyTorch weights in: the released Emu, or LLaMA and EVA-CLIP as starting points, or a diffusers folder.

  python -m emu_jax import-torch Emu/pytorch_model.bin models/emu --tokenizer llama/tokenizer.model
  python -m emu_jax import-torch Emu-instruct.pt models/emu_instruct --tokenizer llama/tokenizer.model
  python -m emu_jax import-torch Llama-13b EVA01_CLIP_g_14_plus_psz14_s11B.pt models/start     a new Emu from both
  python -m emu_jax import-torch stable-diffusion-v1-5 models/emu                              its visual decoder

SOURCE is a file (.safetensors, .bin, .pt) or a folder with one (sharded or not). A config.json beside it, in the
release's layout or ours, tells the sizes; without one they must be the published ones. DEST becomes a model directory,
which `train`, `generate` and `emu_jax.load` read. What no source covers is freshly initialised and listed, and so are
the U-Net's projections of its conditioning where they are not as wide as the Emu's embeddings (Stable Diffusion: 768).
"""

from __future__ import annotations

from pathlib import Path

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.progress import byte_progress
from emu_jax.convert.diffusion_folder import has_decoder_part
from emu_jax.convert.import_torch import prepare_import
from emu_jax.convert.sources import has_emu
from emu_jax.convert.visual_decoder import import_visual_decoder


def main(argv: list[str]) -> None:
    """Runs the command."""
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("sources", metavar="SOURCE", nargs="+", type=Path, help="checkpoint file or folder")
    parser.add_argument("destination", metavar="DEST", type=Path, help="model directory to be made")
    parser.add_argument("--config", metavar="FILE", help="config.json with the sizes, or the preset emu_14b")
    parser.add_argument("--tokenizer", metavar="FILE", type=Path, help="SentencePiece model (default: beside SOURCE)")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="interpolate positions to this image size")
    parser.add_argument(
        "--embedding-width", type=int, metavar="D", help="of what the U-Net is to take (default: the Emu's in DEST)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is freshly initialised (default 0)")
    arguments = parser.parse_args(argv)

    diffusers = [source for source in arguments.sources if has_decoder_part(source)]
    models = [s for s in arguments.sources if s not in diffusers or has_emu(s)]
    if models:
        prepared = prepare_import(
            models,
            config=arguments.config,
            tokenizer=arguments.tokenizer,
            image_size=arguments.image_size,
            seed=arguments.seed,
        )
        with byte_progress("importing", total=prepared.nbytes) as advance:
            prepared.write(arguments.destination, progress=advance)
        for note in prepared.match.notes:
            print(note)
        if prepared.match.initialized:
            print(f"{len(prepared.match.initialized)} parameters are in no source and were freshly initialised:")
            print("\n".join(f"  {path}" for path in prepared.match.initialized))
        if prepared.match.unused:
            print(f"carried along, not used by Emu: {', '.join(prepared.match.unused)}")
        if prepared.tokenizer is None:
            print(
                "no tokenizer.model was found beside the source; give --tokenizer here, or tokenizer= to emu_jax.load"
            )
        size = f"{len(prepared.match.parameters)} parameters ({prepared.nbytes / 1e9:.2f} GB)"
        print(f"{size} are in {arguments.destination}")
    for source in diffusers:
        with byte_progress("importing the visual decoder", total=_size(source)) as advance:
            decoder = import_visual_decoder(
                source,
                arguments.destination,
                width=arguments.embedding_width,
                seed=arguments.seed,
                progress=advance,
            )
        if decoder.initialized:
            print(f"{len(decoder.initialized)} projections of the U-Net take embeddings of another width and are new:")
            print("\n".join(f"  {name}" for name in decoder.initialized))
        print(f"the visual decoder ({', '.join(decoder.parts)}) is in {arguments.destination / 'visual_decoder'}")


def _size(folder: Path) -> int:
    parts = ("unet", "vae")
    return sum(max((f.stat().st_size for f in (folder / part).glob("diffusion*")), default=0) for part in parts)
