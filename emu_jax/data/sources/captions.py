"""COCO captions in the Karpathy split.

`coco_karpathy`: `dataset_coco.json` with "images": "filepath", "filename", "split", "sentences" of "raw". Each
sentence is a pair of its own. `--source-split=train` takes train and restval, as everybody does. Images lie under
FILEPATH/ beside the file (or `--media`).
"""

from pathlib import Path

from emu_jax.data.document import Document, Image, Layout, Text
from emu_jax.data.sources.base import Found, ReadOptions, Rejected, Source, field, json_object
from emu_jax.data.sources.media import media_file


def read_coco(path: Path, options: ReadOptions) -> Found:
    wanted = {"train", "restval"} if options.split == "train" else {options.split}
    for number, record in enumerate(json_object(path, "images", list)):
        key = f"{path.name}:{number}"
        try:
            if field(record, "split", str) not in wanted:
                continue
            folder = record.get("filepath") or "."
            image = media_file(path, f"{folder}/{field(record, 'filename', str)}", options, "", "images")
            sentences = [field(s, "raw", str).strip() for s in field(record, "sentences", list)]
        except ValueError as error:
            yield Rejected("coco_karpathy", key, str(error))
            continue
        for i, sentence in enumerate(sentences):
            if sentence:
                pair = (Image(image), Text(sentence))
                yield Document(pair, source="coco_karpathy", key=f"{key}:{i}", layout=Layout.PAIR)
            else:
                yield Rejected("coco_karpathy", f"{key}:{i}", "the text is empty")


COCO_KARPATHY = Source("coco_karpathy", "dataset_coco.json, images in FILEPATH/ beside it", read_coco)
