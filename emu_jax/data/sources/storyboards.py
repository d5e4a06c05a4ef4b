"""Storyboards as in YT-Storyboard-1B: frames of a video with the subtitles between them.

`storyboard`: tars of VIDEO.0.txt, VIDEO.0.png, VIDEO.1.txt, ... as Emu's own tool writes them. Text i was said between
frames i - 1 and i, so it comes before frame i; it may be empty or missing.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emu_jax.data.bad_data import RecordError
from emu_jax.data.document import Document, Image, Layout, Segment, Text
from emu_jax.data.sources.source import Found, ReadOptions, Source, check_images, convert_records, decode_text
from emu_jax.data.sources.tar_samples import TAR_SUFFIXES, tar_samples

_PART = re.compile(r"(\d{1,9})\.(txt|png|jpg|jpeg|webp)")


def read_storyboards(path: Path, options: ReadOptions) -> Found:
    """Yield the storyboards of a tar."""

    def convert(key: str, parts: Any) -> Iterator[Document]:
        texts: dict[int, str] = {}
        frames: dict[int, bytes] = {}
        for name, data in parts.items():
            match = _PART.fullmatch(name)
            if not match:
                continue
            number = int(match[1])
            if number in (texts if match[2] == "txt" else frames):
                raise RecordError("several files of the storyboard have the same number", name)
            if match[2] == "txt":
                texts[number] = decode_text(data).strip()
            else:
                frames[number] = data
        if not frames:
            raise RecordError("the storyboard has no frames")
        if not any(texts.values()):
            raise RecordError("the storyboard has no text")
        check_images(len(frames), options.limits)
        segments: list[Segment] = []
        for i in sorted({*texts, *frames}):
            segments += [Text(texts[i])] if texts.get(i) else []
            segments += [Image(frames[i])] if i in frames else []
        yield Document(tuple(segments), source="storyboard", key=key, layout=Layout.STORYBOARD)

    samples = ((f"{path.name}:{key}", parts) for key, parts in tar_samples(path, options.limits))
    return convert_records("storyboard", samples, convert, limits=options.limits)


STORYBOARD = Source("storyboard", "tars of VIDEO.0.txt, VIDEO.0.png, VIDEO.1.txt, ...", TAR_SUFFIXES, read_storyboards)
