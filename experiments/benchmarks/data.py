"""Images a second and core through decode, resize, tokenise, lay out and pack: our loader against webdataset with PIL.

    python experiments/benchmarks/data.py [--tar PAIRS.tar] [--tokenizer llama.model]

Both read the same pairs and make 224 x 224 pixels and rows of 1,024 tokens; the others' rows are packed in order of
arrival. Ours is timed on the files as they are, of which it decodes large JPEGs at a reduced scale (how far the pixels
are then from PIL's is printed), and on sets prepared once by `prepare-data`, which is what training reads. Without
--tar, 400 pictures of 640 x 480 are drawn. CPU seconds of this process are counted, so that other work on the machine
does not matter much.
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
from emu_jax.data.loader.pipeline import DataConfig, SetConfig, make_loader
from emu_jax.data.prepare.prepare import PrepareConfig, Store, prepare
from emu_jax.data.tokenizer import Tokenizer, train_tokenizer

BATCH = BatchConfig(batch_size=4, length=1024, max_images=17, image_size=224)
NEEDED = 2_600  # images a second over a v5p-128 at 50% MFU (issue 4)
CAPTION = "a photo of the old red boat on a quiet lake with trees and two people near the wooden pier at dawn"
WORDS = CAPTION.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tar", type=Path, help="pairs as img2dataset writes them")
    parser.add_argument("--tokenizer", type=Path, help="SentencePiece model; default: trained on the captions")
    parser.add_argument("--batches", type=int, default=12, help="timed batches of each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tar = arguments.tar or draw(folder / "pairs.tar", count=400)
        if arguments.tokenizer:
            tokenizer = Tokenizer.load(arguments.tokenizer)
        else:
            tokenizer = train_tokenizer([CAPTION] * 50, folder / "t.model", vocab_size=320)
        rates = {"webdataset + PIL": rate(others(tar, tokenizer), arguments.batches)}
        kinds = {"the files as they are": (None, Store.PNG), "png 224": (224, Store.PNG), "jpeg 224": (224, Store.JPEG)}
        off = difference(tar)
        for name, (size, store) in kinds.items():
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
    print(f"pixels decoded at a reduced scale are off by {off:.2f} of 255 on average")
    base = rates["webdataset + PIL"]
    for name, images in rates.items():
        cores = NEEDED / images
        print(f"{name:<30}{images:7.0f} images/s/core {images / base:6.2f} x {cores:7.1f} cores for {NEEDED}/s")


def rate(batches: Iterator[dict[str, np.ndarray]], count: int) -> float:
    """Images a second of CPU, after one batch to warm up."""
    next(batches)
    start, images = time.process_time(), 0
    for batch in itertools.islice(batches, count):
        images += int(batch["num_images"].sum())
    return images / (time.process_time() - start)


def difference(tar: Path) -> float:
    """Between pixels decoded at a reduced scale and whole, over the first 40 pictures."""
    with tarfile.open(tar) as archive:
        members = (m for m in archive if m.name.endswith((".jpg", ".jpeg")))
        files = [archive.extractfile(m).read() for m in itertools.islice(members, 40)]
    size = BATCH.image_size
    pairs = ((preprocess(file, size, exact=False), preprocess(file, size)) for file in files)
    return float(np.mean([np.abs(reduced.astype(int) - exact).mean() for reduced, exact in pairs]))


def others(tar: Path, tokenizer: Tokenizer) -> Iterator[dict[str, np.ndarray]]:
    """webdataset, PIL, rows in order of arrival."""
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
            place = 0
            while counts[row] < slots:
                image, text = next(samples)
                ids = [tokenizer.bos_id, *image_run, *tokenizer.encode(text), tokenizer.eos_id]
                if place + len(ids) > length:
                    break
                resized = image.resize((size, size), PIL.Image.Resampling.BICUBIC)
                pixels[row, counts[row]] = np.asarray(resized)
                tokens[row, place : place + len(ids)] = ids
                segments[row, place : place + len(ids)] = counts[row] + 1
                place += len(ids)
                counts[row] += 1
        yield {"tokens": tokens, "segment_ids": segments, "images": pixels, "num_images": counts}


def draw(path: Path, *, count: int) -> Path:
    """A tar of pairs whose pictures have the detail of photographs: noise of every scale."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            picture = np.zeros((480, 640, 3), np.float32)
            for side in (4, 16, 64, 256):
                coarse = rng.normal(0, 60 / np.log2(side), (side * 3 // 4, side, 3)).astype(np.float32)
                layers = [PIL.Image.fromarray(coarse[..., c]).resize((640, 480)) for c in range(3)]
                picture += np.stack([np.asarray(layer) for layer in layers], axis=-1)
            file = io.BytesIO()
            PIL.Image.fromarray(np.clip(picture + 128, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
            caption = " ".join(rng.permutation(WORDS)[: rng.integers(6, len(WORDS))])
            parts = {"jpg": file.getvalue(), "txt": caption.encode(), "json": json.dumps({"caption": caption}).encode()}
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{number:09d}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


if __name__ == "__main__":
    main()
