"""COCO captions: the official files and the Karpathy split. Each caption is a pair.

`coco_karpathy`: `dataset_coco.json` with "images": "filepath", "filename", "split", "sentences" of "raw".
`--source-split=train` reads train and restval, as is usual. Images are in FILEPATH/ next to the file (or `--media`).

`coco_captions`: `captions_train2014.json` with "images" (id, file_name) and "annotations" (image_id, caption). Images
are in `train2014/` next to the file or next to its folder, or under `--media`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emu_jax.data.bad_data import RecordError
from emu_jax.data.document import Document, Image, Layout, Text
from emu_jax.data.sources.json_files import json_list, json_object
from emu_jax.data.sources.media_files import media_file
from emu_jax.data.sources.source import Found, Outcome, ReadOptions, Rejected, Source, convert_records, field
from emu_jax.errors import UserError


def _pair(source: str, key: str, image: bytes, caption: str) -> Document:
    return Document((Image(image), Text(caption)), source=source, key=key, layout=Layout.PAIR)


def read_karpathy(path: Path, options: ReadOptions) -> Found:
    """Yield the captions of one split of `dataset_coco.json`, or all of an official captions file."""
    if path.name.startswith("captions_"):
        return read_captions(path, options)
    splits = {"train", "restval"} if options.split == "train" else {options.split}

    def convert(key: str, record: Any) -> Iterator[Document | Rejected]:
        if field(record, "split", str) not in splits:
            return
        folder = record.get("filepath") or "."
        captions = [field(s, "raw", str).strip() for s in field(record, "sentences", list)]
        image = media_file(path, f"{folder}/{field(record, 'filename', str)}", options, "", "images")
        for i, caption in enumerate(captions):
            if caption:
                yield _pair("coco_karpathy", f"{key}:{i}", image, caption)
            else:
                yield Rejected("coco_karpathy", f"{key}:{i}", "the text is empty", outcome=Outcome.BROKEN)

    records = json_list(path, names=("sentences",), of="images")
    return convert_records("coco_karpathy", records, convert, limits=options.limits)


def read_captions(path: Path, options: ReadOptions) -> Found:
    """Yield the captions of an official file."""
    images = json_object(path).get("images")
    if not isinstance(images, list):
        raise UserError(f"{path} is not a COCO captions file: it has no list 'images'.")
    file_names = {image.get("id"): image.get("file_name") for image in images if isinstance(image, dict)}
    subset = path.stem.removeprefix("captions_")

    def convert(key: str, record: Any) -> Iterator[Document]:
        image_id, caption = field(record, "image_id", int), field(record, "caption", str).strip()
        name = file_names.get(image_id)
        if not isinstance(name, str):
            raise RecordError("the image of the caption is not in the file", f"image_id {image_id}")
        if not caption:
            raise RecordError("the text is empty")
        folders = (subset, "images", f"images/{subset}", "", f"../{subset}", "../images", f"../images/{subset}")
        yield _pair("coco_captions", key, media_file(path, name, options, *folders), caption)

    records = json_list(path, names=("caption",), of="annotations")
    return convert_records("coco_captions", records, convert, limits=options.limits)


COCO_KARPATHY = Source("coco_karpathy", "dataset_coco.json, images in FILEPATH/ next to it", (".json",), read_karpathy)
COCO_CAPTIONS = Source(
    "coco_captions",
    "captions_train2014.json, images in train2014/ next to it or to its folder",
    (".json",),
    read_captions,
)
