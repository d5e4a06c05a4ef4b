"""Captions per second of our evaluation against a loop in PyTorch like the release's: same decoder, same images.

    make parity                                                        # makes .venv-parity, with JAX and torch
    .venv-parity/bin/python experiments/benchmarks/evaluation.py

Hidden 512, 8 layers, 8 heads, prompt and options of COCO captions (5 beams, 20 new tokens), float32. Ours is the
runner of `python -m emu_jax evaluate`: it reads images, batches prompts of similar length and saves predictions. The
other side reads the images, forms batches of 1 to 8 in the order of the files as the release does, and calls `generate`
of transformers; its vision encoder costs nothing. Prints a Markdown table, all measured in turn in one process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import torch
import transformers

from emu_jax.checkpoints.model_directory import boxed_shapes
from emu_jax.data.chat_layout import SYSTEM_IMAGE
from emu_jax.data.images import preprocess
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.evaluation.catalog import find_task
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.runner import run_model
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.prompt import Prompt
from emu_jax.models.config import CausalFormerConfig, DecoderConfig, EmuConfig, VisionConfig
from emu_jax.sharding.specs import unbox

SIDE, QUERIES = 28, 32
BATCHES = (1, 4, 8)
OURS = 16


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each, in turn")
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    task = find_task("coco_karpathy")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        emu = make_emu(folder)
        examples = make_examples(folder, arguments.images)
        llama = make_llama(emu.config.decoder)
        prompts = [task.predictor.prepare(emu, example, ()) for example in examples]
        runs: dict[str, Callable[[], None]] = {
            f"PyTorch, batch {size}": lambda size=size: torch_captions(llama, emu, examples, prompts, batch_size=size)
            for size in BATCHES
        }
        runs[f"emu_jax, batch {OURS}"] = lambda: our_captions(emu, examples, folder)
        for run in runs.values():  # compilation, and torch's own first call
            run()
        seconds: dict[str, list[float]] = {label: [] for label in runs}
        for _ in range(arguments.repeats):
            for label, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[label].append(time.perf_counter() - start)
    rates = {label: arguments.images / statistics.median(times) for label, times in seconds.items()}
    best = max(rate for label, rate in rates.items() if label.startswith("PyTorch"))
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, jax {jax.__version__}, "
          f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}; medians of {arguments.repeats}\n")  # fmt: skip
    print("| | captions/s | ratio to the best PyTorch |")
    print("|---|---:|---:|")
    for label, rate in rates.items():
        print(f"| {label} | {rate:.2f} | {rate / best:.2f} |")


def make_emu(folder: Path) -> EmuPipeline:
    """Return an Emu with random weights and a vision encoder of negligible cost."""
    lines = [SYSTEM_IMAGE, "please provide an accurate and concise description of the given image."] * 4
    tokenizer = train_tokenizer(lines, folder / "tokenizer.model", vocab_size=300)
    config = EmuConfig(
        vision=VisionConfig(image_size=SIDE, patch_size=14, width=32, num_layers=1, num_heads=2, mlp_dim=64),
        causal_former=CausalFormerConfig(
            num_image_tokens=QUERIES, width=32, num_layers=1, num_heads=2, head_dim=16, mlp_dim=64
        ),
        decoder=DecoderConfig(
            vocab_size=tokenizer.vocab_size, width=512, num_layers=8, num_heads=8, num_kv_heads=8, mlp_dim=1376
        ),
    )
    rng = np.random.default_rng(0)
    draw = lambda leaf: jax.numpy.asarray(rng.normal(scale=0.02, size=leaf.shape), np.float32)
    return EmuPipeline(config, jax.tree.map(draw, unbox(boxed_shapes(config))), tokenizer=tokenizer)


def make_llama(decoder: DecoderConfig) -> transformers.LlamaForCausalLM:
    """Return a decoder of the same sizes."""
    config = transformers.LlamaConfig(
        vocab_size=decoder.vocab_size,
        hidden_size=decoder.width,
        intermediate_size=decoder.mlp_dim,
        num_hidden_layers=decoder.num_layers,
        num_attention_heads=decoder.num_heads,
        max_position_embeddings=decoder.max_length,
    )
    return transformers.LlamaForCausalLM(config).eval()


def make_examples(folder: Path, count: int) -> list[Example]:
    """Write images of the size of COCO's and return their examples."""
    rng = np.random.default_rng(0)
    examples = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        small = rng.integers(0, 255, (24, 32, 3), np.uint8)
        PIL.Image.fromarray(small).resize((640, 480)).save(path)
        examples.append(Example((number,), (path,)))
    return examples


def our_captions(emu: EmuPipeline, examples: Sequence[Example], folder: Path) -> None:
    """Run the runner of `evaluate` in a new folder."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        run_model(
            emu, find_task("coco_karpathy"), examples, folder=Path(out), shots=lambda example: (), identity={},
            batch_size=OURS, max_missing=0,
        )  # fmt: skip


@torch.no_grad()
def torch_captions(
    llama: transformers.LlamaForCausalLM,
    emu: EmuPipeline,
    examples: Sequence[Example],
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
) -> None:
    """Read, embed and caption batch by batch."""
    special = emu.tokenizer
    for start in range(0, len(examples), batch_size):
        for example in examples[start : start + batch_size]:
            preprocess(example.media[0], SIDE)
        rows = [prompt.tokens for prompt in prompts[start : start + batch_size]]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), special.pad_id)
        for row, tokens in enumerate(rows):
            ids[row, longest - len(tokens) :] = torch.from_numpy(tokens).long()
        llama.generate(
            inputs_embeds=llama.model.embed_tokens(ids),
            attention_mask=(ids != special.pad_id).long(),
            num_beams=5,
            max_new_tokens=20,
            min_length=8,
            length_penalty=-1.0,
            do_sample=False,
            eos_token_id=special.eos_id,
            pad_token_id=special.pad_id,
        )


if __name__ == "__main__":
    main()
