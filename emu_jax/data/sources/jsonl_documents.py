"""Documents in a format of this project, for data that no other source reads.

`jsonl`: one document per line,

    {"layout": "page", "key": "any name", "segments": [{"text": "a cat"}, {"image": "cats/1.jpg"}, {"video": "1.mp4"}]}

"layout" is pair, page, storyboard, video or chat; each segment of a chat also has a "role": system, user or assistant.
"key" is optional. Files are next to the jsonl file, or under `--media`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emu_jax.data.bad_data import RecordError
from emu_jax.data.document import Document, Image, Layout, Role, Segment, Text, Video
from emu_jax.data.sources.json_files import json_lines
from emu_jax.data.sources.media_files import media_file
from emu_jax.data.sources.source import Found, ReadOptions, Source, check_images, convert_records, field


def read_jsonl(path: Path, options: ReadOptions) -> Found:
    """Yield the documents of a jsonl file."""

    def convert(key: str, record: Any) -> Iterator[Document]:
        layout = field(record, "layout", str)
        if layout not in {known.value for known in Layout}:
            raise RecordError("unknown layout", repr(layout))
        name = f"{path.name}:{record['key']}" if isinstance(record.get("key"), str) else key
        records = field(record, "segments", list)
        check_images(len(records), options.limits)
        segments = tuple(_segment(s, path, options, is_chat=layout in ("chat", "preference")) for s in records)
        if not segments:
            raise RecordError("the document has no segments")
        yield Document(segments, source="jsonl", key=name, layout=Layout(layout))

    return convert_records("jsonl", json_lines(path, options.limits), convert, limits=options.limits)


def _segment(record: Any, path: Path, options: ReadOptions, *, is_chat: bool) -> Segment:
    role = None
    if is_chat:
        name = field(record, "role", str)
        if name not in {known.value for known in Role}:
            raise RecordError("unknown role", repr(name))
        role = Role(name)
    names = [name for name in ("text", "image", "video") if isinstance(record, dict) and name in record]
    if len(names) != 1:
        raise RecordError("a segment must have exactly one of text, image, video")
    value = field(record, names[0], str)
    if names[0] == "text":
        return Text(value, role)
    data = media_file(path, value, options, "")
    return Image(data, role) if names[0] == "image" else Video(data, role)


JSONL = Source(
    "jsonl",
    "jsonl of {layout, segments: [{text} | {image: file} | {video: file}]}, files next to it",
    (".jsonl",),
    read_jsonl,
)
