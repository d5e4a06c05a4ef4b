"""Interleaved web pages: MMC4.

`mmc4`: `docs_shard_N_v3.jsonl`, a page a line: "text_list", and "image_info" with "image_name", "matched_text_index"
and "matched_sim" for each image. The images lie in `images/` beside it, or where `--media` says.
"""

from pathlib import Path
from typing import Any

from emu_jax.data.document import Document, Image, Layout, Segment, Text
from emu_jax.data.images import DecodeError, decode
from emu_jax.data.sources.base import Found, ReadOptions, Rejected, Source, field, json_lines, media_file


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
    data = media_file(path, field(info, "image_name", str), options, "images", "")
    decode(data)
    return index, Image(data)


MMC4 = Source("mmc4", "docs_shard_*_v3.jsonl (text_list, image_info), images in images/ beside them", read_mmc4)
