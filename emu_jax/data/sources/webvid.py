"""Videos with a caption: WebVid.

`webvid`: `results_10M_train.csv` with the columns videoid, page_dir and name (the text); the videos are
`videos/PAGE_DIR/VIDEOID.mp4` next to it, or under `--media`. Rows whose video is absent were not downloaded. The text
is cleaned by `webvid_text`; a row without any text after that is dropped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emu_jax.data.bad_data import RecordError
from emu_jax.data.document import Document, Layout, Text, Video
from emu_jax.data.sources.csv_files import csv_rows
from emu_jax.data.sources.media_files import downloaded_file
from emu_jax.data.sources.source import Found, Outcome, ReadOptions, Rejected, Source, convert_records
from emu_jax.data.sources.webvid_text import clean_caption

_COLUMNS = ("videoid", "page_dir", "name")


def read_webvid(path: Path, options: ReadOptions) -> Found:
    """Yield the videos of a CSV file."""

    def convert(key: str, row: Any) -> Iterator[Document | Rejected]:
        if not row["name"].strip():
            raise RecordError("the text is empty")
        text = clean_caption(row["name"])
        if not text:
            yield Rejected("webvid", key, "the text has no description", outcome=Outcome.DROPPED)
            return
        name = f"{row['page_dir']}/{row['videoid']}.mp4" if row["page_dir"] else f"{row['videoid']}.mp4"
        video = downloaded_file(path, name, options, "videos", "")
        segments = (Video(video), Text(text))
        yield Document(segments, source="webvid", key=f"{path.name}:{row['videoid']}", layout=Layout.VIDEO)

    return convert_records("webvid", csv_rows(path, options.limits, columns=_COLUMNS), convert, limits=options.limits)


WEBVID = Source(
    "webvid", "csv files (videoid, page_dir, name), videos in videos/PAGE_DIR/VIDEOID.mp4", (".csv",), read_webvid
)
