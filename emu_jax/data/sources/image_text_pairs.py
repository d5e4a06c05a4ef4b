"""Image-text pairs as img2dataset writes them: LAION-2B, LAION-COCO, CapsFusion.

`pairs`: `00000.tar` of KEY.jpg (or .png, .webp, ...), KEY.txt and KEY.json. Without KEY.txt, the caption is the
"caption" of KEY.json.

`pairs_parquet`: `00000.parquet` with a column of images named by their format (`jpg`, `png`, `webp`, or `image` as
bytes or {"bytes": ...}) and a column `caption` (or `txt`, `text`, `TEXT`).

A row or sample without image whose status is not "success" was not downloaded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emu_jax.data.bad_data import NotDownloaded, RecordError
from emu_jax.data.document import Document, Image, Layout, Text
from emu_jax.data.sources.json_files import parse_json
from emu_jax.data.sources.parquet_files import parquet_columns, parquet_rows
from emu_jax.data.sources.source import Found, ReadOptions, Source, convert_records, decode_text, field
from emu_jax.data.sources.tar_samples import TAR_SUFFIXES, tar_samples
from emu_jax.errors import UserError

_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tif", "tiff")
_IMAGE_COLUMNS = (*_IMAGE_EXTENSIONS, "image", "image_bytes")
_CAPTION_COLUMNS = ("caption", "txt", "text", "TEXT")


def _pair(source: str, key: str, image: bytes, caption: str) -> Document:
    if not caption.strip():
        raise RecordError("the text is empty")
    return Document((Image(image), Text(caption.strip())), source=source, key=key, layout=Layout.PAIR)


def _check_status(record: Any) -> None:
    """Raise NotDownloaded if img2dataset's status of a record is a failure."""
    status = record.get("status") if isinstance(record, dict) else None
    if isinstance(status, str) and status != "success":
        error = record.get("error_message")
        raise NotDownloaded(status.replace("_", " "), error if isinstance(error, str) else "")


def read_tar(path: Path, options: ReadOptions) -> Found:
    """Yield the pairs of a webdataset tar."""

    def convert(key: str, parts: Any) -> Iterator[Document]:
        metadata = parse_json(parts["json"]) if "json" in parts and ("txt" not in parts or not _images(parts)) else {}
        images = _images(parts)
        if not images:
            _check_status(metadata)
            raise RecordError("the sample has no image")
        if len(images) > 1:
            raise RecordError("the sample has several images", ", ".join(images))
        if "txt" in parts:
            caption = decode_text(parts["txt"])
        elif "json" in parts:
            caption = field(metadata, "caption", str)
        else:
            raise RecordError("the sample has no text")
        yield _pair("pairs", key, parts[images[0]], caption)

    samples = ((f"{path.name}:{key}", parts) for key, parts in tar_samples(path, options.limits))
    return convert_records("pairs", samples, convert, limits=options.limits)


def _images(parts: dict[str, bytes]) -> list[str]:
    return [extension for extension in _IMAGE_EXTENSIONS if extension in parts]


def read_parquet(path: Path, options: ReadOptions) -> Found:
    """Yield the pairs of a Parquet file."""
    columns = parquet_columns(path)
    image = next((c for c in _IMAGE_COLUMNS if c in columns), None)
    captions = [c for c in _CAPTION_COLUMNS if c in columns]
    if image is None or not captions:
        raise UserError(
            f"{path} needs a column jpg (or png, webp, image) and caption (or txt, text); it has {columns}."
        )
    names = (image, *captions, *(c for c in ("key", "status", "error_message") if c in columns))

    def convert(key: str, record: Any) -> Iterator[Document]:
        data = record[image].get("bytes") if isinstance(record[image], dict) else record[image]
        if not data:
            _check_status(record)
            raise NotDownloaded("the row has no image")
        if not isinstance(data, bytes):
            raise RecordError("the image is not bytes", type(data).__name__)
        name = f"{path.name}:{record['key']}" if isinstance(record.get("key"), str) and record["key"] else key
        caption = next((record[c] for c in captions if record[c] is not None), None)
        if not isinstance(caption, str):
            raise RecordError("the row has no text")
        yield _pair("pairs_parquet", name, data, caption)

    return convert_records("pairs_parquet", parquet_rows(path, columns=names), convert, limits=options.limits)


PAIRS = Source(
    "pairs", "webdataset tars of KEY.jpg, KEY.txt, KEY.json, as img2dataset writes them", TAR_SUFFIXES, read_tar
)
PAIRS_PARQUET = Source("pairs_parquet", "parquet files with the columns jpg and caption", (".parquet",), read_parquet)
