"""Image-text pairs as img2dataset writes them: LAION-2B, LAION-COCO, CapsFusion.

`pairs`: `00000.tar` of KEY.jpg (or .png, .webp), KEY.txt and KEY.json. Where there is no KEY.txt, the caption is the
"caption" of KEY.json.

`pairs_parquet`: `00000.parquet` with the columns `jpg` (or `image`, bytes or {"bytes": ...}) and `caption` (or `text`,
`TEXT`), and `key` where there is one.
"""

from pathlib import Path
from typing import Any

from emu_jax.data.document import Document, Image, Layout, Text
from emu_jax.data.sources.base import (
    Found,
    ReadOptions,
    Rejected,
    Source,
    field,
    json_of,
    parquet_columns,
    parquet_rows,
    text_of,
)
from emu_jax.data.sources.tars import samples
from emu_jax.errors import UserError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


def _pair(source: str, key: str, image: bytes, caption: str) -> Document:
    if not caption.strip():
        raise ValueError("the text is empty")
    return Document((Image(image), Text(caption.strip())), source=source, key=key, layout=Layout.PAIR)


def read_tar(path: Path, options: ReadOptions) -> Found:
    del options
    for key, parts in samples(path):
        name = f"{path.name}:{key}"
        try:
            if isinstance(parts, ValueError):
                raise parts
            image = next((parts[e] for e in IMAGE_EXTENSIONS if e in parts), None)
            if image is None:
                raise ValueError("the sample has no image")
            if "txt" in parts:
                caption = text_of(parts["txt"])
            elif "json" in parts:
                caption = field(json_of(parts["json"]), "caption", str)
            else:
                raise ValueError("the sample has no text")
            yield _pair("pairs", name, image, caption)
        except ValueError as error:
            yield Rejected("pairs", name, str(error))


def read_parquet(path: Path, options: ReadOptions) -> Found:
    del options
    columns = parquet_columns(path)
    image = next((c for c in ("jpg", "image", "image_bytes") if c in columns), None)
    caption = next((c for c in ("caption", "text", "TEXT") if c in columns), None)
    if image is None or caption is None:
        raise UserError(f"{path} needs a column jpg (or image) and caption (or text); it has {columns}.")
    names = (image, caption, *(["key"] if "key" in columns else []))
    for key, record in parquet_rows(path, columns=names):
        try:
            if isinstance(record, ValueError):
                raise record
            name = f"{path.name}:{record['key']}" if record.get("key") else key
            yield _pair("pairs_parquet", name, _bytes(record[image]), field(record, caption, str))
        except ValueError as error:
            yield Rejected("pairs_parquet", key, str(error))


def _bytes(value: Any) -> bytes:
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes) or not value:
        raise ValueError("the row has no image")
    return value


PAIRS = Source("pairs", "webdataset tars of KEY.jpg, KEY.txt, KEY.json, as img2dataset writes them", read_tar)
PAIRS_PARQUET = Source("pairs_parquet", "parquet files with the columns jpg and caption", read_parquet)
