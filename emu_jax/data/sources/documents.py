"""Documents in a form of our own, for anything that none of the other readers takes.

`jsonl`: one document a line,

    {"layout": "page", "key": "any name", "segments": [{"text": "a cat"}, {"image": "cats/1.jpg"}, {"video": "1.mp4"}]}

"layout" is pair, page, storyboard, video or chat; each segment of a chat also has a "role": system, user or assistant.
"key" may be left out. Files are looked for beside the jsonl file, or under `--media`.
"""

from pathlib import Path
from typing import Any

from emu_jax.data.document import Document, Image, Layout, Role, Segment, Text, Video
from emu_jax.data.sources.base import Found, ReadOptions, Rejected, Source, field, json_lines
from emu_jax.data.sources.media import media_file


def read_jsonl(path: Path, options: ReadOptions) -> Found:
    for key, record in json_lines(path):
        try:
            if isinstance(record, ValueError):
                raise record
            layout = field(record, "layout", str)
            if layout not in {known.value for known in Layout}:
                raise ValueError(f"there is no layout {layout!r}")
            name = f"{path.name}:{record['key']}" if isinstance(record.get("key"), str) else key
            segments = tuple(_segment(s, path, options, chat=layout == "chat") for s in field(record, "segments", list))
            if not segments:
                raise ValueError("the document has no segments")
            yield Document(segments, source="jsonl", key=name, layout=Layout(layout))
        except ValueError as error:
            yield Rejected("jsonl", key, str(error))


def _segment(record: Any, path: Path, options: ReadOptions, *, chat: bool) -> Segment:
    role = None
    if chat:
        who = field(record, "role", str)
        if who not in {known.value for known in Role}:
            raise ValueError(f"there is no role {who!r}")
        role = Role(who)
    kinds = [name for name in ("text", "image", "video") if isinstance(record, dict) and name in record]
    if len(kinds) != 1:
        raise ValueError("a segment has one of text, image, video")
    value = field(record, kinds[0], str)
    if kinds[0] == "text":
        return Text(value, role)
    data = media_file(path, value, options, "")
    return Image(data, role) if kinds[0] == "image" else Video(data, role)


JSONL = Source(
    "jsonl", "jsonl of {layout, segments: [{text} | {image: file} | {video: file}]}, files beside it", read_jsonl
)
