"""GenEval: four images per prompt, in the layout that its object detector expects."""

import json
from pathlib import Path
from typing import Any

from emu_jax.errors import UserError
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.image_generation import GenerateImages
from emu_jax.evaluation.task import Task
from emu_jax.generation.options import ImageOptions
from emu_jax.io.files import write_text

_IMAGES = 4


def read(data: DataRoot, split: str) -> list[Example]:
    del split
    file = "evaluation_metadata.jsonl"
    examples = []
    for number, line in enumerate(data.lines(file)):
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{data.file(file)}, line {number + 1} is not an object with a prompt.") from None
        examples.append(Example(key=(number,), text=prompt, details={"metadata": line}))
    return examples


def folder(example: Example) -> str:
    """Return the folder of a prompt: images/00000, images/00001, ..."""
    return f"images/{int(example.key[0]):05d}"


def write_metadata(example: Example, out: Path) -> None:
    """Write the prompt's line as metadata.jsonl next to its samples."""
    write_text(out / folder(example) / "metadata.jsonl", example.details["metadata"])


def check(value: Any, example: Example) -> None:
    del example
    if not isinstance(value, list) or len(value) != _IMAGES:
        raise ValueError(f"must list {_IMAGES} files")


TASK = Task(
    name="geneval",
    title="GenEval",
    files={"geneval/evaluation_metadata.jsonl": "prompts, of GenEval's repository"},
    splits=("test",),
    source="GenEval's layout: evaluation/evaluate_images.py OUT/geneval/images scores it",
    read=read,
    key_fields=("index",),
    value_field="files",
    check=check,
    predictor=GenerateImages(
        ImageOptions(),
        lambda example: tuple(f"{folder(example)}/samples/{n:04d}.png" for n in range(_IMAGES)),
        metadata=write_metadata,
    ),
    metric=None,
    headline="overall",
    makes_images=True,
)
