"""Small prepared sets in which the text and the image color of each document identify it."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from emu_jax.data.prepare.cleaning import PrepareConfig, Store
from emu_jax.data.prepare.job import prepare
from emu_jax.data.tokenizer import Tokenizer, train_tokenizer

NUMBER_OF = {"pairs": 61, "pages": 23, "chats": 17}


def color_image(number: int) -> np.ndarray:
    """Return 8 x 8 pixels of one color that encodes the number of the document."""
    return np.full((8, 8, 3), (number % 256, number // 256, 77), np.uint8)


def write_jsonl(folder: Path, name: str, records: list[dict], images: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, pixels in images.items():
        PIL.Image.fromarray(pixels).save(folder / file)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def make_set(folder: Path, name: str, first: int) -> Path:
    """Prepare a set of NUMBER_OF[name] documents numbered from `first`; the number is in text and pixels."""
    records, images = [], {}
    for n in range(first, first + NUMBER_OF[name]):
        images[f"{n}.png"] = color_image(n)
        image, text = {"image": f"{n}.png"}, {"text": f"number {n} " + "and on " * (n % 5)}
        if name == "pairs":
            records.append({"layout": "pair", "segments": [image, text]})
        elif name == "pages":
            records.append({"layout": "page", "segments": [image, text, image, {"text": "end"}]})
        else:
            turns = [image | {"role": "user"}, text | {"role": "user"}, {"text": f"{n}", "role": "assistant"}]
            records.append({"layout": "chat", "segments": turns})
    path = write_jsonl(folder / f"raw_{name}", name, records, images)
    config = PrepareConfig(source="jsonl", name=name, image_size=8, store=Store.RAW, min_side=4)
    prepare([path], folder / name, config=config)
    return folder / name


@pytest.fixture(scope="session")
def cases() -> Path:
    """Return the folder with small files that users reported."""
    return Path(__file__).parent / "cases"


@pytest.fixture(scope="session")
def sets(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return {name: make_set(folder, name, first) for name, first in (("pairs", 0), ("pages", 300), ("chats", 600))}


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    train_tokenizer([f"number {n} and on and on end" for n in range(200)], path, vocab_size=300)
    return Tokenizer.load(path, instruct=True)
