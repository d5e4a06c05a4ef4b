"""Videos with text: WebVid, and storyboards as YT-Storyboard-1B.

`webvid`: `results_10M_train.csv` with the columns videoid, page_dir and name (the text); the films are
`videos/PAGE_DIR/VIDEOID.mp4` beside it, or under `--media`.

`storyboard`: tars of VIDEO.0.txt, VIDEO.0.png, VIDEO.1.txt, ... as Emu's own tool writes them. Text i is what was said
since frame i - 1, so it comes before frame i; it may be empty or missing.
"""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from emu_jax.data.document import Document, Image, Layout, Segment, Text, Video
from emu_jax.data.sources.base import Found, ReadOptions, Rejected, Source, open_file, text_of
from emu_jax.data.sources.media import media_file
from emu_jax.data.sources.tars import samples
from emu_jax.errors import UserError

_LONGEST = 2**16  # bytes of the line with the columns' names
_PART = re.compile(r"(\d{1,6})\.(txt|png|jpg|jpeg|webp)")


def read_webvid(path: Path, options: ReadOptions) -> Found:
    with open_file(path) as file:
        yield from _webvid(path, file, options)


def _webvid(path: Path, file: IO[bytes], options: ReadOptions) -> Found:
    try:
        names = next(csv.reader([file.readline(_LONGEST).decode("utf-8-sig", "replace")]), [])
    except csv.Error as error:
        raise UserError(f"{path} does not begin with the names of its columns ({error}).") from None
    if not {"videoid", "page_dir", "name"} <= set(names):
        raise UserError(f"{path} needs the columns videoid, page_dir and name; it has {names}.")
    for number, row in _rows(file):
        key = f"{path.name}:{number}"
        try:
            if isinstance(row, ValueError):
                raise row
            if len(row) != len(names):
                raise ValueError(f"the row has {len(row)} fields of {len(names)}")
            record = dict(zip(names, row, strict=True))
            key = f"{path.name}:{record['videoid']}"
            if not record["name"].strip():
                raise ValueError("the text is empty")
            film = media_file(path, f"{record['page_dir']}/{record['videoid']}.mp4", options, "videos", "")
            segments = (Video(film), Text(record["name"].strip()))
            yield Document(segments, source="webvid", key=key, layout=Layout.VIDEO)
        except ValueError as error:
            yield Rejected("webvid", key, str(error))


def _rows(body: Iterable[bytes]):
    """(line number, fields or a ValueError): a row may span lines within quotes, and a broken one costs only itself."""
    pending, start = b"", 2
    for number, line in enumerate(body, start=2):
        if not pending:
            start = number
        pending += line
        if pending.count(b'"') % 2 and number - start < 20:
            continue
        try:
            text = text_of(pending)
            rows = list(csv.reader(io.StringIO(text, newline="")))
            if text.strip():
                yield start, rows[0] if len(rows) == 1 else ValueError("a quote is left open")
        except (ValueError, csv.Error) as error:
            yield start, ValueError(str(error))
        pending = b""
    if pending:
        yield start, ValueError("a quote is left open")


def read_storyboards(path: Path, options: ReadOptions) -> Found:
    del options
    for video, parts in samples(path):
        key = f"{path.name}:{video}"
        try:
            if isinstance(parts, ValueError):
                raise parts
            texts: dict[int, str] = {}
            frames: dict[int, bytes] = {}
            for name, data in parts.items():
                match = _PART.fullmatch(name)
                if match and match[2] == "txt":
                    texts[int(match[1])] = text_of(data).strip()
                elif match:
                    frames[int(match[1])] = data
            if not frames:
                raise ValueError("the storyboard has no frames")
            if not any(texts.values()):
                raise ValueError("the storyboard has no text")
            segments: list[Segment] = []
            for i in sorted({*texts, *frames}):
                segments += [Text(texts[i])] if texts.get(i) else []
                segments += [Image(frames[i])] if i in frames else []
            yield Document(tuple(segments), source="storyboard", key=key, layout=Layout.STORYBOARD)
        except ValueError as error:
            yield Rejected("storyboard", key, str(error))


WEBVID = Source("webvid", "csv files (videoid, page_dir, name), films in videos/PAGE_DIR/VIDEOID.mp4", read_webvid)
STORYBOARD = Source("storyboard", "tars of VIDEO.0.txt, VIDEO.0.png, VIDEO.1.txt, ...", read_storyboards)
