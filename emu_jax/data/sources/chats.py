"""Chats: LLaVA, ShareGPT, Alpaca, VideoChat (Video-ChatGPT).

`llava`: a json list of {"id", "image", "conversations": [{"from": "human" | "gpt", "value"}]}; `<image>` in the first
question tells where the image stands. Images lie in `images/` beside the file, or under `--media`. "video" in the
place of "image" gives a film, from `videos/`.

`sharegpt`: the same without images ("from" may be "system"). `alpaca`: a list of {"instruction", "input", "output"}.
`videochat`: a list of {"video", "QA": [{"i", "q", "a"}]}, films in `videos/`; Video-ChatGPT's {"video_id", "q", "a"}
too, whose film is VIDEO_ID.mp4, .mkv or .webm.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from emu_jax.data.document import Document, Image, Layout, Role, Segment, Text, Video
from emu_jax.data.sources.base import Found, ReadOptions, Rejected, Source, field, json_list
from emu_jax.data.sources.media import media_file

_ROLES = {
    "human": Role.USER, "user": Role.USER, "gpt": Role.ASSISTANT, "assistant": Role.ASSISTANT, "chatgpt":
    Role.ASSISTANT, "bing": Role.ASSISTANT, "bard": Role.ASSISTANT, "system": Role.SYSTEM,
}  # fmt: skip


def _read(source: str, segments_of: Callable[[Any, Path, ReadOptions], list[Segment]]):
    def read(path: Path, options: ReadOptions) -> Found:
        for number, record in enumerate(json_list(path)):
            key = f"{path.name}:{number}"
            try:
                segments = segments_of(record, path, options)
                if not any(s.role is Role.ASSISTANT for s in segments):
                    raise ValueError("the chat has no answer")
                yield Document(tuple(segments), source=source, key=key, layout=Layout.CHAT)
            except ValueError as error:
                yield Rejected(source, key, str(error))

    return read


def _llava(record: Any, path: Path, options: ReadOptions) -> list[Segment]:
    pictures: list[Segment] = []
    if isinstance(record, dict) and record.get("image") is not None:
        names = [record["image"]] if isinstance(record["image"], str) else field(record, "image", list)
        for name in names:
            if not isinstance(name, str):
                raise ValueError("the field 'image' holds no file name")
            pictures.append(Image(media_file(path, name, options, "images", ""), Role.USER))
    if isinstance(record, dict) and record.get("video") is not None:
        pictures.append(Video(media_file(path, field(record, "video", str), options, "videos", ""), Role.USER))
    return _conversation(field(record, "conversations", list), pictures)


def _conversation(turns: list[Any], pictures: list[Segment]) -> list[Segment]:
    """The turns in order, each picture at the next `<image>` (or `<video>`) of a question, or all of them first."""
    segments: list[Segment] = []
    left = list(pictures)
    marks = sum(_marks(turn) for turn in turns)
    if pictures and marks not in (0, len(pictures)):
        raise ValueError(f"{marks} places for {len(pictures)} images")
    if pictures and marks == 0:
        segments, left = left, []
    for turn in turns:
        who = field(turn, "from", str)
        if who not in _ROLES:
            raise ValueError(f"nobody knows who {who!r} is")
        role = _ROLES[who]
        value = field(turn, "value", str)
        pieces = value.replace("<video>", "<image>").split("<image>") if pictures and role is Role.USER else [value]
        for i, piece in enumerate(pieces):
            if i:
                segments.append(left.pop(0))
            if piece.strip():
                segments.append(Text(piece.strip(), role))
    return segments


def _marks(turn: Any) -> int:
    value = field(turn, "value", str)
    return value.count("<image>") + value.count("<video>") if _ROLES.get(turn.get("from")) is Role.USER else 0


def _sharegpt(record: Any, path: Path, options: ReadOptions) -> list[Segment]:
    del path, options
    return _conversation(field(record, "conversations", list), [])


def _alpaca(record: Any, path: Path, options: ReadOptions) -> list[Segment]:
    del path, options
    question = field(record, "instruction", str).strip()
    more = record.get("input") or ""
    if not isinstance(more, str):
        raise ValueError("the field 'input' is not text")
    question = f"{question}\n{more.strip()}" if more.strip() else question
    return _turns([(question, field(record, "output", str))])


def _videochat(record: Any, path: Path, options: ReadOptions) -> list[Segment]:
    if isinstance(record, dict) and "QA" in record:
        film = media_file(path, field(record, "video", str), options, "videos", "")
        turns = [(f"{turn.get('i') or ''} {field(turn, 'q', str)}", field(turn, "a", str)) for turn in record["QA"]]
    else:
        film = _film(path, field(record, "video_id", str), options)
        turns = [(field(record, "q", str), field(record, "a", str))]
    return [Video(film, Role.USER), *_turns(turns)]


def _film(path: Path, video_id: str, options: ReadOptions) -> bytes:
    """ActivityNet's films, as they are shared, are of three kinds."""
    for kind in ("mkv", "webm"):
        try:
            return media_file(path, f"{video_id}.{kind}", options, "videos", "")
        except ValueError:
            continue
    return media_file(path, f"{video_id}.mp4", options, "videos", "")


def _turns(turns: list[tuple[str, str]]) -> list[Segment]:
    segments: list[Segment] = []
    for question, answer in turns:
        if not question.strip() or not answer.strip():
            raise ValueError("a question or an answer is empty")
        segments += [Text(question.strip(), Role.USER), Text(answer.strip(), Role.ASSISTANT)]
    return segments


LLAVA = Source(
    "llava", "json lists of {id, image, conversations}, images in images/ beside them", _read("llava", _llava)
)
SHAREGPT = Source("sharegpt", "json lists of {id, conversations}", _read("sharegpt", _sharegpt))
ALPACA = Source("alpaca", "json lists of {instruction, input, output}", _read("alpaca", _alpaca))
VIDEOCHAT = Source(
    "videochat", "json lists of {video, QA: [{i, q, a}]}, films in videos/ beside them", _read("videochat", _videochat)
)
