"""DPG-Bench: long prompts, four images each on one sheet, as its scorer crops them."""

from pathlib import Path
from typing import Any

import PIL.Image

from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.image_generation import GenerateImages
from emu_jax.evaluation.task import Task
from emu_jax.generation.options import ImageOptions
from emu_jax.generation.pixels import contact_sheet
from emu_jax.io.files import atomic_file, read_text

_IMAGES = 4


def read(data: DataRoot, split: str) -> list[Example]:
    del split
    paths = sorted(data.folder("prompts").glob("*.txt"))
    return [Example(key=(path.stem,), text=" ".join(read_text(path).split())) for path in paths]


def files(example: Example) -> tuple[str, ...]:
    """Return the single images; the sheet is images/NAME.png."""
    return tuple(f"samples/{example.key[0]}_{n}.png" for n in range(_IMAGES))


def write_sheet(example: Example, out: Path) -> None:
    """Write the images of a prompt as a 2 x 2 sheet without a gap."""
    images = [PIL.Image.open(out / name) for name in files(example)]
    with atomic_file(out / f"images/{example.key[0]}.png") as temporary:
        contact_sheet(images, gap=0).save(temporary, "PNG")


def check(value: Any, example: Example) -> None:
    del example
    if not isinstance(value, list) or len(value) != _IMAGES:
        raise ValueError(f"must list {_IMAGES} files")


TASK = Task(
    name="dpg",
    title="DPG-Bench",
    files={"dpg/prompts/": "NAME.txt, of ELLA's dpg_bench"},
    splits=("test",),
    source="DPG-Bench's layout: compute_dpg_bench.py --image-root-path OUT/dpg/images --pic-num 4 scores it",
    read=read,
    key_fields=("name",),
    value_field="files",
    check=check,
    predictor=GenerateImages(ImageOptions(), files, metadata=write_sheet),
    metric=None,
    headline="overall",
    makes_images=True,
)
