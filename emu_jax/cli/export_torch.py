"""Export a model to PyTorch: the release's layout, a folder for transformers, or a LLaMA folder with an `emu/` folder.

  python -m emu_jax export-torch models/emu out/emu                                safetensors, the release's names
  python -m emu_jax export-torch models/emu out/emu --bin                          pytorch_model.bin (requires torch)
  python -m emu_jax export-torch models/emu out/model --format transformers --license apache-2.0
  python -m emu_jax export-torch models/emu out/llama --format huggingface --dtype bfloat16
  python -m emu_jax export-torch models/emu_instruct out/merged --merge-lora
  python -m emu_jax export-torch models/emu out/pipeline --format pipeline         the release's EmuGenerationPipeline
  python -m emu_jax export-torch runs/decoder out/decoder                          a run of the stage visual_decoder

CHECKPOINT is a model directory, a training run (its newest checkpoint), or one step of a run. A visual decoder is
written next to the Emu as unet/, vae/, scheduler/ and model_index.json, which diffusers opens.

The format transformers is for `AutoModel.from_pretrained(DEST, trust_remote_code=True)`: it has its own code, and a
model card with the license, the base model, the config of the run, and the scores of `evaluate --output DIR`.
"""

from __future__ import annotations

from pathlib import Path

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.imports import heavy_imports
from emu_jax.cli.progress import byte_progress


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="model directory, run, or step of a run")
    parser.add_argument("destination", metavar="DEST", type=Path, help="folder to write")
    parser.add_argument(
        "--format",
        choices=("release", "transformers", "huggingface", "pipeline"),
        default="release",
        help="default: release",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="cast to this type (default: as saved)"
    )
    parser.add_argument("--merge-lora", action="store_true", help="add the adapters to the weights that they adapt")
    parser.add_argument("--bin", action="store_true", help="write one pytorch_model.bin instead of safetensors")
    parser.add_argument("--shard-gb", type=float, default=5.0, help="largest safetensors file (default 5)")
    parser.add_argument(
        "--variant", choices=("fp16", "bf16"), help='visual decoder: write NAME.fp16.safetensors, for variant="fp16"'
    )
    parser.add_argument("--inv-freq", action="store_true", help="write rotary_emb.inv_freq, for transformers <= 4.31")
    parser.add_argument("--base-layer", action="store_true", help="name adapted weights as peft >= 0.10 does")
    parser.add_argument(
        "--legacy-attention", action="store_true", help="name the VAE's attention as diffusers before 0.17 does"
    )
    options = parser.add_argument_group("model card of --format transformers")
    options.add_argument("--license", metavar="ID", help="identifier of the Hugging Face Hub (default: other)")
    options.add_argument("--base-model", metavar="ID", help="model on the Hugging Face Hub that training started from")
    options.add_argument("--scores", metavar="DIR", type=Path, help="output folder of evaluate")
    arguments = parser.parse_args(argv)

    with heavy_imports():
        import jax.numpy as jnp

        from emu_jax.convert.diffusion_folder import DecoderFiles, absent_screening
        from emu_jax.convert.export_torch import Layout, decoder_only, export_decoder, prepare_export
        from emu_jax.convert.model_card import training_options
        from emu_jax.evaluation.compare import read_summaries
        from emu_jax.evaluation.results import flat_scores

    dtype = None if arguments.dtype is None else jnp.dtype(arguments.dtype)
    if dtype is None and arguments.variant is not None:
        dtype = jnp.dtype({"fp16": "float16", "bf16": "bfloat16"}[arguments.variant])
    decoder = decoder_only(arguments.checkpoint)
    if decoder is not None:
        form = DecoderFiles(dtype, arguments.variant, arguments.legacy_attention)
        files = export_decoder(decoder, arguments.destination, form)
        print(f"the visual decoder is in {arguments.destination}:")
        print("\n".join(f"  {name}" for name in files))
        return
    prepared = prepare_export(
        arguments.checkpoint,
        dtype=dtype,
        merge_lora=arguments.merge_lora,
        inv_freq=arguments.inv_freq,
        base_layer=arguments.base_layer,
        variant=arguments.variant,
        legacy_attention=arguments.legacy_attention,
    )
    layout = Layout(arguments.format)
    card = {
        "license": arguments.license,
        "base_model": arguments.base_model,
        "training": training_options(arguments.checkpoint),
        "scores": {},
    }
    if arguments.scores is not None:
        summaries = read_summaries(arguments.scores)
        card["scores"] = {task: flat_scores(summary["scores"]) for task, summary in summaries.items()}
    with byte_progress("exporting", total=prepared.nbytes) as progress:
        files = prepared.write(
            arguments.destination,
            layout=layout,
            card=card,
            binary=arguments.bin,
            shard_bytes=int(arguments.shard_gb * 1e9),
            progress=progress,
        )
    if layout is Layout.PIPELINE and (absent := absent_screening(arguments.destination)):
        print(
            f"note: the visual decoder has no {' and no '.join(f'{part}/' for part in absent)}, which the release's "
            "pipeline opens; copy what is absent from Stable Diffusion v1.5"
        )
    if prepared.zeros and layout is not Layout.TRANSFORMERS:
        print(f"written as zeros, because this model does not have them: {', '.join(prepared.zeros)}")
    print(f"{len(prepared.tensors)} tensors ({prepared.nbytes / 1e9:.2f} GB) are in {arguments.destination}:")
    print("\n".join(f"  {name}" for name in files))
