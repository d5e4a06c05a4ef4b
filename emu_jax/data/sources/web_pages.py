"""Interleaved web pages: MMC4 and OBELICS.

`mmc4`: `docs_shard_N_v3.jsonl`, one page per line: "text_list", and "image_info" with "image_name",
"matched_text_index" and "matched_sim" for each image. The images are in `images/` or `docs_shard_N_v3.tar` next to it,
or in the folder or tar that `--media` names.

`obelics`: parquet with the columns "images" and "texts", two lists of equal length of which one holds null at each
position. An image is its bytes, {"bytes": ...}, or the name of a file in `images/` (or `--media`): the public set holds
links, which must be downloaded first (both lists hold null if that failed).

An image that is missing or broken is a reject, and the page is used without it, because its sentences still belong
together.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emu_jax.data.bad_data import BadData, NotDownloaded, RecordError
from emu_jax.data.document import Document, Image, Layout, Segment, Text
from emu_jax.data.images import decode
from emu_jax.data.sources.json_files import json_lines
from emu_jax.data.sources.media_files import downloaded_file
from emu_jax.data.sources.parquet_files import parquet_rows
from emu_jax.data.sources.source import (
    Found,
    Outcome,
    ReadOptions,
    Rejected,
    Source,
    check_images,
    convert_records,
    field,
)
from emu_jax.errors import UserError


def _lost_image(source: str, key: str, number: int, error: Exception) -> Rejected:
    """Return the reject of one image of a page."""
    if isinstance(error, UserError) and not isinstance(error, BadData):
        raise error
    outcome = Outcome.NOT_DOWNLOADED if isinstance(error, NotDownloaded) else Outcome.BROKEN
    reason, detail = (
        (error.reason, error.detail)
        if isinstance(error, BadData)
        else ("the image has an unexpected form", f"{type(error).__name__}: {error}")
    )
    return Rejected(source, f"{key}:image {number}", reason, detail, outcome, is_record=False)


def read_mmc4(path: Path, options: ReadOptions) -> Found:
    """Yield the pages of MMC4, each image before its sentence; the sequence may move it after the sentence."""

    def convert(key: str, record: Any) -> Iterator[Document | Rejected]:
        sentences = field(record, "text_list", list)
        if not all(isinstance(s, str) for s in sentences) or not any(s.strip() for s in sentences):
            raise RecordError("the page has no text")
        images = field(record, "image_info", list)
        check_images(len(images), options.limits)
        matched: dict[int, list[Image]] = {}
        rejects = []
        for number, info in enumerate(images):
            try:
                found = _matched_image(path, info, options, sentences=len(sentences))
            except Exception as error:
                rejects.append(_lost_image("mmc4", key, number, error))
                continue
            if found is not None:
                matched.setdefault(found[0], []).append(found[1])
        yield from rejects
        segments: list[Segment] = []
        for i, sentence in enumerate(sentences):
            segments += matched.get(i, [])
            segments += [Text(sentence.strip())] if sentence.strip() else []
        if not matched:
            outcomes = {reject.outcome for reject in rejects}
            yield Rejected("mmc4", key, *_no_image(outcomes))
            return
        yield Document(tuple(segments), source="mmc4", key=key, layout=Layout.PAGE)

    return convert_records("mmc4", json_lines(path, options.limits), convert, limits=options.limits)


def _no_image(outcomes: set[Outcome]) -> tuple[str, str, Outcome]:
    """Return reason, detail and outcome of a page without images, given the outcomes of its images."""
    if Outcome.BROKEN in outcomes:
        return "no image of the page can be read", "", Outcome.BROKEN
    if Outcome.NOT_DOWNLOADED in outcomes:
        return "no image of the page was downloaded", "", Outcome.NOT_DOWNLOADED
    return "no image of the page matches its sentence", "", Outcome.DROPPED


def _matched_image(path: Path, info: Any, options: ReadOptions, *, sentences: int) -> tuple[int, Image] | None:
    """Return an image and the index of its sentence, or None if their similarity is too small."""
    similarity = field(info, "matched_sim", (int, float))
    if not math.isfinite(similarity):
        raise RecordError("the similarity of an image is not a number")
    if similarity < options.min_similarity:
        return None
    index = field(info, "matched_text_index", int)
    if not 0 <= index < sentences:
        raise RecordError("matched_text_index is out of range", f"{index} of {sentences}")
    data = downloaded_file(path, field(info, "image_name", str), options, "images", f"{path.stem}.tar", "")
    decode(data, limits=options.limits)
    return index, Image(data)


def read_obelics(path: Path, options: ReadOptions) -> Found:
    """Yield the pages of OBELICS."""

    def convert(key: str, record: Any) -> Iterator[Document | Rejected]:
        images, texts = field(record, "images", list), field(record, "texts", list)
        if len(images) != len(texts):
            raise RecordError("images and texts differ in length", f"{len(images)} and {len(texts)}")
        check_images(sum(image is not None for image in images), options.limits)
        segments: list[Segment] = []
        rejects: list[Rejected] = []
        for number, (image, text) in enumerate(zip(images, texts, strict=True)):
            if image is not None and text is not None:
                raise RecordError("a position of the page holds both image and text")
            if text is not None:
                segments += [Text(text.strip())] if text.strip() else []
                continue
            try:
                if image is None:
                    raise NotDownloaded("an image of the page is null")
                segments.append(Image(_obelics_image(path, image, options)))
            except NotDownloaded as error:
                rejects.append(_lost_image("obelics", key, number, error))
        yield from rejects
        yield Document(tuple(segments), source="obelics", key=key, layout=Layout.PAGE)

    return convert_records("obelics", parquet_rows(path, columns=("images", "texts")), convert, limits=options.limits)


def _obelics_image(path: Path, image: Any, options: ReadOptions) -> bytes:
    data = image.get("bytes") if isinstance(image, dict) else image
    if isinstance(data, bytes) and data:
        return data
    if not isinstance(data, str):
        raise RecordError("the image is neither bytes nor a file name")
    if "://" in data:
        raise RecordError("the image is still a link; replace it by its bytes or file name")
    return downloaded_file(path, data, options, "images", "")


MMC4 = Source(
    "mmc4", "docs_shard_*_v3.jsonl, images in images/ (or docs_shard_*_v3.tar) next to them", (".jsonl",), read_mmc4
)
OBELICS = Source(
    "obelics", "parquet files with the columns images and texts, of equal length", (".parquet",), read_obelics
)
