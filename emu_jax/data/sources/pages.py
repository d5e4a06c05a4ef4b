"""Interleaved web pages: MMC4 and OBELICS.

`mmc4`: `docs_shard_N_v3.jsonl`, a page a line: "text_list", and "image_info" with "image_name", "matched_text_index"
and "matched_sim" for each image. The images lie in `images/` or `docs_shard_N_v3.tar` beside it, or in the folder or
tar that `--media` names.

`obelics`: parquet with the columns "images" and "texts", two lists in step of which one holds null at each place. An
image is its bytes, {"bytes": ...}, or the name of a file in `images/` (or `--media`): the public set holds links, to be
downloaded first (both lists hold null where that failed).
"""

from pathlib import Path
from typing import Any

from emu_jax.data.document import Document, Image, Layout, Segment, Text
from emu_jax.data.images import DecodeError, decode
from emu_jax.data.sources.base import Found, ReadOptions, Rejected, Source, field, json_lines, parquet_rows
from emu_jax.data.sources.media import media_file


def read_mmc4(path: Path, options: ReadOptions) -> Found:
    """Each image stands before its sentence; whether it stays there is drawn when the sequence is built.

    An image that is missing or broken is a reject of its own, and the page goes on without it, since its sentences
    still belong together.
    """
    for key, record in json_lines(path):
        try:
            if isinstance(record, ValueError):
                raise record
            sentences = field(record, "text_list", list)
            if not all(isinstance(s, str) for s in sentences) or not any(s.strip() for s in sentences):
                raise ValueError("the page has no text")
            placed: dict[int, list[Image]] = {}
            rejects = []
            for number, info in enumerate(field(record, "image_info", list)):
                try:
                    found = _image(path, info, options, sentences=len(sentences))
                except (ValueError, DecodeError) as error:
                    rejects.append(Rejected("mmc4", f"{key}:image {number}", str(error)))
                    continue
                if found is not None:
                    placed.setdefault(found[0], []).append(found[1])
            yield from rejects
            segments: list[Segment] = []
            for i, sentence in enumerate(sentences):
                segments += placed.get(i, [])
                segments += [Text(sentence.strip())] if sentence.strip() else []
            if not placed:
                raise ValueError("no image of the page is left")
            yield Document(tuple(segments), source="mmc4", key=key, layout=Layout.PAGE)
        except ValueError as error:
            yield Rejected("mmc4", key, str(error))


def _image(path: Path, info: Any, options: ReadOptions, *, sentences: int) -> tuple[int, Image] | None:
    """Its sentence and the image, or None where it matches its sentence too little."""
    if field(info, "matched_sim", (int, float)) < options.min_similarity:
        return None
    index = field(info, "matched_text_index", int)
    if not 0 <= index < sentences:
        raise ValueError(f"matched_text_index {index} is no sentence of {sentences}")
    data = media_file(path, field(info, "image_name", str), options, "images", f"{path.stem}.tar", "")
    decode(data)
    return index, Image(data)


def read_obelics(path: Path, options: ReadOptions) -> Found:
    for key, record in parquet_rows(path, columns=("images", "texts")):
        try:
            if isinstance(record, ValueError):
                raise record
            images, texts = field(record, "images", list), field(record, "texts", list)
            if len(images) != len(texts):
                raise ValueError(f"{len(images)} images stand beside {len(texts)} texts")
            segments: list[Segment] = []
            for image, text in zip(images, texts, strict=True):
                if image is not None and text is not None:
                    raise ValueError("a place of the page holds both image and text")
                if image is not None:
                    segments.append(Image(_obelics_image(path, image, options)))
                elif text is not None and text.strip():
                    segments.append(Text(text.strip()))
            yield Document(tuple(segments), source="obelics", key=key, layout=Layout.PAGE)
        except ValueError as error:
            yield Rejected("obelics", key, str(error))


def _obelics_image(path: Path, image: Any, options: ReadOptions) -> bytes:
    data = image.get("bytes") if isinstance(image, dict) else image
    if isinstance(data, bytes) and data:
        return data
    if not isinstance(data, str):
        raise ValueError("the image is neither bytes nor a file name")
    if "://" in data:
        raise ValueError("the image is still a link; put its bytes or its file name in the place of it")
    return media_file(path, data, options, "images", "")


MMC4 = Source("mmc4", "docs_shard_*_v3.jsonl, images in images/ (or docs_shard_*_v3.tar) beside them", read_mmc4)
OBELICS = Source("obelics", "parquet files with the columns images and texts, in step", read_obelics)
