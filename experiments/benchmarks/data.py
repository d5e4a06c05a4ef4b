"""Images per second and core for decode, resize, tokenize, layout and packing: our loader, and webdataset with PIL.

    python experiments/benchmarks/data.py [--tar PAIRS.tar] [--tokenizer llama.model]

Both read the same pairs and produce 224 x 224 pixels and rows of 1,024 tokens; the rows of webdataset are packed in the
order of arrival. Our loader is timed on the original files, whose large JPEGs it decodes at a reduced scale (the mean
difference from PIL's pixels is printed), and on sets prepared by `prepare-data`, which training reads. Without --tar,
400 synthetic images of 640 x 480 are used. CPU seconds of this process are measured, so that other work on the machine
has little influence.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import webdataset

from emu_jax.data.batch import BatchConfig
from emu_jax.data.images import preprocess
from emu_jax.data.loader.config import DataConfig, SetConfig
from emu_jax.data.loader.pipeline import make_loader
from emu_jax.data.prepare.cleaning import PrepareConfig, Store
from emu_jax.data.prepare.job import prepare
from emu_jax.data.tokenizer import Tokenizer, train_tokenizer

BATCH = BatchConfig(batch_size=4, length=1024, max_images=17, image_size=224)
NEEDED = 2_600  # images per second of the 14B model on a v5p-128 at 50% MFU
CAPTION = "a photo of the old red boat on a quiet lake with trees and two people near the wooden pier at dawn"
WORDS = CAPTION.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tar", type=Path, help="pairs as img2dataset writes them")
    parser.add_argument("--tokenizer", type=Path, help="SentencePiece model; default: trained on the captions")
    parser.add_argument("--batches", type=int, default=12, help="timed batches per loader")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tar = arguments.tar or synthetic_tar(folder / "pairs.tar", count=400)
        if arguments.tokenizer:
            tokenizer = Tokenizer.load(arguments.tokenizer)
        else:
            tokenizer = train_tokenizer([CAPTION] * 50, folder / "t.model", vocab_size=320)
        rates = {"webdataset + PIL": rate(webdataset_batches(tar, tokenizer), arguments.batches)}
        variants = {"original files": (None, Store.PNG), "png 224": (224, Store.PNG), "jpeg 224": (224, Store.JPEG)}
        error = reduced_scale_error(tar)
        for name, (size, store) in variants.items():
            output = folder / name.replace(" ", "_")
            config = PrepareConfig(source="pairs", image_size=size, store=store)
            start = time.process_time()
            summary = prepare([tar], output, config=config)
            prepared = summary.images / (time.process_time() - start)
            data = DataConfig(sets=(SetConfig(path=str(output)),), batch=BATCH, prefetch=0)
            loader = make_loader(data, tokenizer=tokenizer, seed=0)
            rates[f"ours, {name}"] = rate(loader, arguments.batches)
            print(
                f"prepared ({name}): {prepared:.0f} images/s/core, {summary.bytes / summary.images / 1e3:.0f} kB each"
            )
    print(f"pixels decoded at a reduced scale differ by {error:.2f} of 255 on average")
    base = rates["webdataset + PIL"]
    for name, images in rates.items():
        cores = NEEDED / images
        print(f"{name:<30}{images:7.0f} images/s/core {images / base:6.2f} x {cores:7.1f} cores for {NEEDED}/s")


def rate(batches: Iterator[dict[str, np.ndarray]], count: int) -> float:
    """Return images per CPU second, after one batch of warm-up."""
    next(batches)
    start, images = time.process_time(), 0
    for batch in itertools.islice(batches, count):
        images += int(batch["num_images"].sum())
    return images / (time.process_time() - start)


def reduced_scale_error(tar: Path) -> float:
    """Return the mean difference between reduced and full decoding over the first 40 images."""
    with tarfile.open(tar) as archive:
        members = (m for m in archive if m.name.endswith((".jpg", ".jpeg")))
        files = [archive.extractfile(m).read() for m in itertools.islice(members, 40)]
    size = BATCH.image_size
    pairs = ((preprocess(file, size, exact=False), preprocess(file, size)) for file in files)
    return float(np.mean([np.abs(reduced.astype(int) - exact).mean() for reduced, exact in pairs]))


def webdataset_batches(tar: Path, tokenizer: Tokenizer) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches made with webdataset and PIL, with rows packed in the order of arrival."""
    samples = webdataset.WebDataset(str(tar), shardshuffle=False).repeat().shuffle(64).decode("pilrgb")
    samples = iter(samples.to_tuple("jpg;png;webp", "txt"))
    length, slots, size = BATCH.length, BATCH.max_images, BATCH.image_size
    image_run = [tokenizer.boi_id, *[tokenizer.image_token_id] * 32, tokenizer.eoi_id]
    while True:
        tokens = np.full((BATCH.batch_size, length), tokenizer.pad_id, np.int32)
        segments = np.zeros((BATCH.batch_size, length), np.int32)
        pixels = np.zeros((BATCH.batch_size, slots, size, size, 3), np.uint8)
        counts = np.zeros(BATCH.batch_size, np.int32)
        for row in range(BATCH.batch_size):
            position = 0
            while counts[row] < slots:
                image, text = next(samples)
                ids = [tokenizer.bos_id, *image_run, *tokenizer.encode(text), tokenizer.eos_id]
                if position + len(ids) > length:
                    break
                resized = image.resize((size, size), PIL.Image.Resampling.BICUBIC)
                pixels[row, counts[row]] = np.asarray(resized)
                tokens[row, position : position + len(ids)] = ids
                segments[row, position : position + len(ids)] = counts[row] + 1
                position += len(ids)
                counts[row] += 1
        yield {"tokens": tokens, "segment_ids": segments, "images": pixels, "num_images": counts}


def synthetic_tar(path: Path, *, count: int) -> Path:
    """Write a tar of pairs whose images have structures of every scale, as photographs do."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            pixels = np.zeros((480, 640, 3), np.float32)
            for side in (4, 16, 64, 256):
                coarse = rng.normal(0, 60 / np.log2(side), (side * 3 // 4, side, 3)).astype(np.float32)
                layers = [PIL.Image.fromarray(coarse[..., c]).resize((640, 480)) for c in range(3)]
                pixels += np.stack([np.asarray(layer) for layer in layers], axis=-1)
            file = io.BytesIO()
            PIL.Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
            caption = " ".join(rng.permutation(WORDS)[: rng.integers(6, len(WORDS))])
            parts = {"jpg": file.getvalue(), "txt": caption.encode(), "json": json.dumps({"caption": caption}).encode()}
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{number:09d}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


if __name__ == "__main__":
    main()
