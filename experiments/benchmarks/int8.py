"""Compare a model with int8 kernels, and the model in bfloat16, with the same model in float32.

    python -m experiments.benchmarks.int8 --checkpoint runs/demo --data runs/demo/data/mmc4 runs/demo/data/llava

Prints for each prepared set, over the text tokens of its documents, the KL divergence of the next token to that of the
float32 model (nats, mean and 99th percentile), and the fraction of tokens whose most likely successor is the same; over
the images, the squared error of the predicted embeddings relative to their variance. `--dtype` is the compute dtype of
the int8 model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import emu_jax
from emu_jax.data.document import Document, Image, Text
from emu_jax.data.images import preprocess
from emu_jax.data.loader.prepared_set import PreparedSet
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.prompt import Part, Prompt
from emu_jax.models.outputs import EmuOutput


class Batch(NamedTuple):
    """Documents as rows: tokens `[B, L]`, images `[B, I, S, S, 3]`, and the positions that are text or images."""

    tokens: np.ndarray
    images: np.ndarray
    is_text: np.ndarray
    is_image: np.ndarray


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="prepared sets")
    parser.add_argument("--documents", type=int, default=128, help="of each set, its last ones (default: 128)")
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    exact = emu_jax.load(arguments.checkpoint, dtype="float32")
    models = {
        "bfloat16": emu_jax.load(arguments.checkpoint, dtype="bfloat16"),
        f"int8, {arguments.dtype}": emu_jax.load(arguments.checkpoint, dtype=arguments.dtype, quantization="int8"),
    }
    print(f"jax {jax.__version__}, {arguments.documents} documents of each set\n")
    print("| set | model | KL, mean | KL, p99 | same most likely token | error of embeddings |")
    print("|---|---|---:|---:|---:|---:|")
    for path in arguments.data:
        documents = PreparedSet(path)
        chosen = range(max(0, len(documents) - arguments.documents), len(documents))
        batch = make_batch(exact, [documents[index] for index in chosen])
        expected = exact.forward(batch.tokens, batch.images)
        for name, model in models.items():
            print(f"| {path.name} | {name} | {row(expected, model.forward(batch.tokens, batch.images), batch)} |")


def make_batch(emu: EmuPipeline, documents: list[Document]) -> Batch:
    """Return the documents as padded rows."""
    prompts = [emu.build_prompt(parts(document, emu.config.vision.image_size)) for document in documents]
    length = max(len(prompt.tokens) for prompt in prompts)
    count = max(len(prompt.images) for prompt in prompts)
    special = emu.tokenizer
    tokens = np.stack([pad(prompt.tokens, length, special.pad_id) for prompt in prompts])
    next_tokens = np.roll(tokens, -1, axis=1)
    next_tokens[:, -1] = special.pad_id
    is_image = next_tokens == special.image_token_id
    other = np.isin(next_tokens, (special.pad_id, special.image_token_id))
    return Batch(tokens, np.stack([pad_images(prompt, count, emu) for prompt in prompts]), ~other, is_image)


def parts(document: Document, size: int) -> list[Part]:
    """Return the texts and pixels of a document, as parts of a prompt."""
    found: list[Part] = []
    for segment in document.segments:
        if isinstance(segment, Text):
            found.append(segment.text)
        elif isinstance(segment, Image):
            found.append(np.asarray(preprocess(segment.data, size)))
    return found


def pad(tokens: np.ndarray, length: int, pad_id: int) -> np.ndarray:
    """Pad at the end."""
    return np.pad(tokens, (0, length - len(tokens)), constant_values=pad_id)


def pad_images(prompt: Prompt, count: int, emu: EmuPipeline) -> np.ndarray:
    """Return the images of a prompt, padded with zeros to `count`."""
    size = emu.config.vision.image_size
    padded = np.zeros((count, size, size, 3), np.float32)
    for slot, image in enumerate(prompt.images):
        padded[slot] = image
    return padded


def row(expected: EmuOutput, got: EmuOutput, batch: Batch) -> str:
    """Return the cells of the table for one model."""
    reference, found = (jax.nn.log_softmax(output.logits.astype(jnp.float32)) for output in (expected, got))
    divergence = np.asarray(jnp.sum(jnp.exp(reference) * (reference - found), axis=-1))[batch.is_text]
    same = np.asarray(reference.argmax(-1) == found.argmax(-1))[batch.is_text].mean()
    embeddings, others = (
        np.asarray(output.visual_predictions, np.float32)[batch.is_image] for output in (expected, got)
    )
    error = np.mean((embeddings - others) ** 2) / np.mean((embeddings - embeddings.mean(0)) ** 2)
    return f"{divergence.mean():.2g} | {np.quantile(divergence, 0.99):.2g} | {same:.2%} | {error:.2g}"


if __name__ == "__main__":
    main()
