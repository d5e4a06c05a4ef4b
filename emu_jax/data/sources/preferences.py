"""Preferences: rows with a prompt, a chosen and a rejected answer, and images, as in TRL, LLaMA-Factory and RLAIF-V.

The prompt is text under "prompt" or "question", or messages under "prompt", "conversations" or "messages". An answer is
text, a message, or a list of one message. Media are as in `llava`; the images of a prompt without marks come first.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emu_jax.data.bad_data import RecordError
from emu_jax.data.document import Document, Layout, Role, Segment
from emu_jax.data.sources.chats import check_order, conversation, insert_media, message_turn, record_media
from emu_jax.data.sources.json_files import json_records
from emu_jax.data.sources.source import Found, ReadOptions, Source, convert_records, field

_NAMES = ("chosen", "rejected")


def _read(path: Path, options: ReadOptions) -> Found:
    def convert(key: str, record: Any) -> Iterator[Document]:
        turns = _prompt(record)
        images, videos = record_media(record, path, options)
        if isinstance(record.get("prompt", record.get("question")), str) and not _has_marks(turns):
            role, text = turns[-1]
            turns[-1] = (role, "<image>" * len(images) + "<video>" * len(videos) + text)
        if turns[-1][0] is not Role.USER:
            raise RecordError("the prompt does not end with the user")
        chosen, rejected = (_answer(record, name) for name in _NAMES)
        if chosen == rejected:
            raise RecordError("the chosen and the rejected answer are equal")
        check_order([*turns, (Role.ASSISTANT, chosen)])
        answers = [(Role.ASSISTANT, chosen), (Role.REJECTED, rejected)]
        segments: list[Segment] = insert_media([*turns, *answers], images, videos)
        yield Document(tuple(segments), source="preferences", key=key, layout=Layout.PREFERENCE)

    records = json_records(path, options.limits, names=_NAMES)
    return convert_records("preferences", records, convert, limits=options.limits)


def _prompt(record: Any) -> list[tuple[Role, str]]:
    for name in ("prompt", "question"):
        if isinstance(record, dict) and isinstance(record.get(name), str):
            if not record[name].strip():
                raise RecordError("the prompt is empty")
            return [*conversation({"system": record.get("system"), "messages": []}), (Role.USER, record[name].strip())]
    if isinstance(record, dict) and "prompt" in record:
        record = {"system": record.get("system"), "messages": record["prompt"]}
    turns = conversation(record)
    if not turns:
        raise RecordError("the prompt is empty")
    return turns


def _answer(record: Any, name: str) -> str:
    value = field(record, name, (str, dict, list))
    if isinstance(value, list):
        if len(value) != 1:
            raise RecordError(f"the field {name!r} is not one message", f"it has {len(value)}")
        value = value[0]
    if isinstance(value, str):
        if not value.strip():
            raise RecordError("an answer is empty")
        return value.strip()
    role, text = message_turn(value)
    if role is not Role.ASSISTANT:
        raise RecordError(f"the field {name!r} is not of the assistant")
    return text


def _has_marks(turns: list[tuple[Role, str]]) -> bool:
    return any("<image>" in text or "<video>" in text for _, text in turns)


PREFERENCES = Source(
    "preferences",
    "json lists or lines of {prompt, chosen, rejected, image(s)}, images in images/ next to them",
    (".json", ".jsonl"),
    _read,
)
