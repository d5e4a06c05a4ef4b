"""Chats: LLaVA, ShareGPT, ShareGPT4V, LLaMA-Factory, Alpaca, VideoChat (Video-ChatGPT).

All files are JSON lists or JSON lines.

`llava`, `sharegpt`: records with turns under "conversations" ({"from", "value"}) or "messages" ({"role", "content"}),
optionally a "system" message, and media under "image", "images", "video" or "videos" (a file name or a list). Each
`<image>` or `<video>` in the text is the position of the next file; their numbers must be equal. In a file in which no
record has one of these media fields, `<image>` is text. Images are in `images/` and videos in `videos/` next to the
file, or under `--media`.

`alpaca`: {"instruction", "input", "output"}, optionally "system", "history" and the same media.

`videochat`: {"video", "QA": [{"i", "q", "a"}]}, videos in `videos/`; also Video-ChatGPT's {"video_id", "q", "a"}, whose
video is VIDEO_ID.mp4, .mkv or .webm.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from emu_jax.data.bad_data import RecordError
from emu_jax.data.document import Document, Image, Layout, Role, Segment, Text, Video
from emu_jax.data.sources.json_files import json_records
from emu_jax.data.sources.media_files import MissingFile, media_file
from emu_jax.data.sources.source import Found, ReadOptions, Source, check_images, convert_records, field

_ROLES = {
    "human": Role.USER, "user": Role.USER, "gpt": Role.ASSISTANT, "assistant": Role.ASSISTANT, "chatgpt":
    Role.ASSISTANT, "bing": Role.ASSISTANT, "bard": Role.ASSISTANT, "system": Role.SYSTEM,
}  # fmt: skip

_IMAGE_FIELDS, _VIDEO_FIELDS = ("image", "images"), ("video", "videos")
_MARK = re.compile("(<image>|<video>)")

_Turn = tuple[Role, str]
_Turns = Callable[[Any], list[_Turn]]


def _read(source: str, turns_of: _Turns, *, names: tuple[str, ...]):
    """Return the reader of a source with one chat per record."""

    def read(path: Path, options: ReadOptions) -> Found:
        records = json_records(path, options.limits, names=names)
        has_media = any(_has_media_field(record) for _, record in records)

        def convert(key: str, record: Any) -> Iterator[Document]:
            turns = turns_of(record)
            check_order(turns)
            if has_media:
                segments = insert_media(turns, *record_media(record, path, options))
            else:
                segments = [Text(text, role) for role, text in turns]
            yield _chat(source, key, segments)

        return convert_records(source, records, convert, limits=options.limits)

    return read


def _chat(source: str, key: str, segments: list[Segment]) -> Document:
    if not any(segment.role is Role.ASSISTANT for segment in segments):
        raise RecordError("the chat has no answer")
    return Document(tuple(segments), source=source, key=key, layout=Layout.CHAT)


def check_order(turns: list[_Turn]) -> None:
    """Raise RecordError unless user and assistant alternate; either may begin, as in ShareGPT."""
    for number, ((before, _), (role, _)) in enumerate(itertools.pairwise(turns), start=1):
        if role is before or role is Role.SYSTEM:
            raise RecordError("the turns do not alternate", f"turn {number} is of the {role.value}")


def _has_media_field(record: Any) -> bool:
    return isinstance(record, dict) and any(name in record for name in (*_IMAGE_FIELDS, *_VIDEO_FIELDS))


def record_media(record: Any, path: Path, options: ReadOptions) -> tuple[list[bytes], list[bytes]]:
    """Return the bytes of the images and of the videos of a record."""
    images, videos = _file_names(record, _IMAGE_FIELDS), _file_names(record, _VIDEO_FIELDS)
    check_images(len(images) + len(videos), options.limits)
    return (
        [media_file(path, name, options, "images", "") for name in images],
        [media_file(path, name, options, "videos", "") for name in videos],
    )


def _file_names(record: Any, fields: tuple[str, ...]) -> list[str]:
    """Return the file names under one of `fields`; null, NaN (from pandas) and empty values are none."""
    found: list[str] = []
    for name in fields:
        value = record.get(name)
        is_nan = isinstance(value, float) and value != value
        if value is None or is_nan or value == "" or value == []:
            continue
        names = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) and item for item in names):
            raise RecordError(f"the field {name!r} holds no file name", f"it is {type(value).__name__}")
        if found and found != names:
            raise RecordError("two fields name different files", " and ".join(fields))
        found = names
    return found


def insert_media(turns: list[_Turn], images: list[bytes], videos: list[bytes]) -> list[Segment]:
    """Return the turns as segments, with each image at the next `<image>` and each video at the next `<video>`.

    LLaVA marks videos with `<image>`; this is accepted for records that have only videos.
    """
    text = "".join(text for _, text in turns)
    image_marks, video_marks = text.count("<image>"), text.count("<video>")
    if videos and not images and not video_marks:
        image_marks, video_marks = 0, image_marks
        turns = [(role, text.replace("<image>", "<video>")) for role, text in turns]
    for mark, marks, files in (("<image>", image_marks, images), ("<video>", video_marks, videos)):
        if marks != len(files):
            raise RecordError(f"the numbers of {mark} marks and files differ", f"{marks} marks for {len(files)} files")
    next_image, next_video = iter(images), iter(videos)
    segments: list[Segment] = []
    for role, text in turns:
        for piece in _MARK.split(text):
            if piece in ("<image>", "<video>") and role is Role.SYSTEM:
                raise RecordError("a system message has an image")
            if piece == "<image>":
                segments.append(Image(next(next_image), role))
            elif piece == "<video>":
                segments.append(Video(next(next_video), role))
            elif piece.strip():
                segments.append(Text(piece.strip(), role))
    return segments


def conversation(record: Any) -> list[_Turn]:
    """Return the turns of a record of LLaVA, ShareGPT or LLaMA-Factory."""
    if isinstance(record, dict) and "conversations" not in record and "messages" in record:
        messages = field(record, "messages", list)
    else:
        messages = field(record, "conversations", list)
    turns = _system(record)
    return turns + [message_turn(message) for message in messages]


def message_turn(message: Any) -> tuple[Role, str]:
    """Return the role and the text of a message in either form."""
    role_name, content_name = ("role", "content") if _has(message, "role", "content") else ("from", "value")
    role = field(message, role_name, str)
    if role not in _ROLES:
        raise RecordError("unknown role", repr(role))
    return _ROLES[role], _content(message, content_name)


def _has(record: Any, *names: str) -> bool:
    return isinstance(record, dict) and all(name in record for name in names)


def _content(message: Any, name: str) -> str:
    """Return the text of a message; a list of parts, as in the OpenAI format, becomes text with marks."""
    content = field(message, name, (str, list))
    if isinstance(content, list):
        marks = {"image": "<image>", "image_url": "<image>", "video": "<video>"}
        kinds = [field(part, "type", str) for part in content]
        if unknown := [kind for kind in kinds if kind != "text" and kind not in marks]:
            raise RecordError("unknown part of a message", repr(unknown[0]))
        content = "".join(
            field(part, "text", str) if kind == "text" else marks[kind]
            for kind, part in zip(kinds, content, strict=True)
        )
    if not content.strip():
        raise RecordError("a message is empty")
    return content.strip()


def _system(record: dict) -> list[_Turn]:
    message = record.get("system")
    if message is None or message == "":
        return []
    if not isinstance(message, str):
        raise RecordError("the field 'system' is not text")
    return [(Role.SYSTEM, message.strip())]


def _instruction(record: Any) -> list[_Turn]:
    """Return the turns of an Alpaca record."""
    question = field(record, "instruction", str).strip()
    context = record.get("input") or ""
    if not isinstance(context, str):
        raise RecordError("the field 'input' is not text")
    question = f"{question}\n{context.strip()}" if context.strip() else question
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise RecordError("the field 'history' is not a list of pairs")
    return [
        *_system(record),
        *question_turns([*(tuple(pair) for pair in history), (question, field(record, "output", str))]),
    ]


def question_turns(pairs: list[tuple[str, str]]) -> list[_Turn]:
    """Return (question, answer) pairs as turns of user and assistant. Raises RecordError if one is empty."""
    turns: list[_Turn] = []
    for question, answer in pairs:
        if not isinstance(question, str) or not isinstance(answer, str):
            raise RecordError("a question or an answer is not text")
        if not question.strip() or not answer.strip():
            raise RecordError("a question or an answer is empty")
        turns += [(Role.USER, question.strip()), (Role.ASSISTANT, answer.strip())]
    return turns


_VIDEOCHAT_NAMES = ("QA", "video_id")


def read_videochat(path: Path, options: ReadOptions) -> Found:
    """Yield the chats about videos of VideoChat and Video-ChatGPT."""

    def convert(key: str, record: Any) -> Iterator[Document]:
        if isinstance(record, dict) and "QA" in record:
            pairs = [
                (f"{_prefix(turn)}{field(turn, 'q', str)}", field(turn, "a", str)) for turn in field(record, "QA", list)
            ]
            video = media_file(path, field(record, "video", str), options, "videos", "")
        else:
            pairs = [(field(record, "q", str), field(record, "a", str))]
            video = _video_of_id(path, field(record, "video_id", str), options)
        texts = [Text(text, role) for role, text in question_turns(pairs)]
        yield _chat("videochat", key, [Video(video, Role.USER), *texts])

    records = json_records(path, options.limits, names=_VIDEOCHAT_NAMES)
    return convert_records("videochat", records, convert, limits=options.limits)


def _prefix(turn: Any) -> str:
    """Return the instruction before a question of VideoChat."""
    instruction = turn.get("i") if isinstance(turn, dict) else None
    if instruction is None or instruction == "":
        return ""
    if not isinstance(instruction, str):
        raise RecordError("the field 'i' is not text")
    return f"{instruction} "


def _video_of_id(path: Path, video_id: str, options: ReadOptions) -> bytes:
    """Return the video of an id; ActivityNet is distributed with three file types."""
    for suffix in ("mkv", "webm"):
        try:
            return media_file(path, f"{video_id}.{suffix}", options, "videos", "")
        except MissingFile:
            continue
    return media_file(path, f"{video_id}.mp4", options, "videos", "")


_TURN_NAMES = ("conversations", "messages")
_SUFFIXES = (".json", ".jsonl")

LLAVA = Source(
    "llava",
    "json lists or lines of {image(s), video(s), conversations | messages}, images in images/ next to them",
    _SUFFIXES,
    _read("llava", conversation, names=_TURN_NAMES),
)
SHAREGPT = Source(
    "sharegpt",
    "json lists or lines of {conversations | messages}, also with media as in llava",
    _SUFFIXES,
    _read("sharegpt", conversation, names=_TURN_NAMES),
)
ALPACA = Source(
    "alpaca",
    "json lists or lines of {instruction, input, output}",
    _SUFFIXES,
    _read("alpaca", _instruction, names=("instruction",)),
)
VIDEOCHAT = Source(
    "videochat",
    "json lists or lines of {video, QA: [{i, q, a}]}, videos in videos/ next to them",
    _SUFFIXES,
    read_videochat,
)
