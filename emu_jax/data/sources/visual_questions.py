"""Questions about images: VQAv2, OK-VQA, VizWiz, VisDial. Each is a chat with the most common answer.

All reference answers are stored in the document too, for evaluation.

`vqav2`, `okvqa`: a `..._questions.json` with its `..._annotations.json` (or `questions.json` with `annotations.json`)
next to it. The image subset (`train2014`) is the "data_subtype" of either file, or part of its name. Images are
`train2014/COCO_train2014_000000000009.jpg`, or `000000000009.jpg`, next to it (or under `--media`).

`vizwiz`: `train.json`, a list of {"image", "question", "answers"}; images in `train/`, or `images/`.

`visdial`: `visdial_1.0_train.json`; images named as in COCO, in `images/` or `--media`; a dialog is one chat.
"""

import collections
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emu_jax.data.bad_data import RecordError
from emu_jax.data.document import Document, Image, Layout, Role, Segment, Text
from emu_jax.data.regular_files import open_regular_file
from emu_jax.data.sources.chats import question_turns
from emu_jax.data.sources.json_files import json_list, json_object
from emu_jax.data.sources.media_files import MissingFile, media_file
from emu_jax.data.sources.source import Found, ReadOptions, Source, convert_records, field
from emu_jax.errors import UserError

_SUBSET = re.compile(r"(?:train|val|test(?:-dev)?)\d{4}")


def _chat(
    source: str, key: str, image: bytes, pairs: list[tuple[str, str]], *, references: tuple[str, ...] = ()
) -> Document:
    texts = [Text(text, role) for role, text in question_turns(pairs)]
    segments: list[Segment] = [Image(image, Role.USER), *texts]
    return Document(tuple(segments), source=source, key=key, layout=Layout.CHAT, references=references)


def _answers(answers: list[Any]) -> tuple[str, ...]:
    return tuple(field(answer, "answer", str).strip() for answer in answers)


def _most_common(answers: tuple[str, ...]) -> str:
    counts = collections.Counter(answers)
    counts.pop("", None)
    if not counts:
        raise RecordError("there is no answer")
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _read_vqa(path: Path, options: ReadOptions, *, source: str) -> Found:
    with open_regular_file(path):
        pass
    annotations_path = path.with_name(path.name.replace("OpenEnded_", "").replace("questions", "annotations"))
    if not path.name.endswith("questions.json") or not annotations_path.exists():
        raise UserError(f"{path}: {source} requires a ...questions.json with its ...annotations.json next to it.")
    annotations = json_object(annotations_path)
    answers: dict[Any, Any] = {}
    for annotation in _list(annotations_path, annotations, "annotations"):
        number = annotation.get("question_id") if isinstance(annotation, dict) else None
        if isinstance(number, int):
            answers[number] = None if number in answers else annotation  # None: two annotations of one question
    subset = _subset(path, annotations_path, annotations)

    def convert(key: str, record: Any) -> Iterator[Document]:
        number = field(record, "question_id", int)
        if number not in answers:
            raise RecordError("the question has no annotation")
        if answers[number] is None:
            raise RecordError("the question has several annotations")
        if answers[number].get("image_id") != field(record, "image_id", int):
            raise RecordError("question and annotation belong to different images")
        references = _answers(field(answers[number], "answers", list))
        pair = (field(record, "question", str), _most_common(references))
        image = _coco_image(path, record["image_id"], [subset], options)
        yield _chat(source, key, image, [pair], references=references)

    records = json_list(path, names=("question",), of="questions")
    return convert_records(source, records, convert, limits=options.limits)


def _list(path: Path, value: dict, name: str) -> list[Any]:
    try:
        return field(value, name, list)
    except RecordError as error:
        raise UserError(f"{path}: {error}.") from None


def _subset(path: Path, annotations_path: Path, annotations: dict) -> str:
    """Return the image subset ("train2014") of a VQA file, or "" if it is nowhere named."""
    declared = annotations.get("data_subtype")
    if not isinstance(declared, str):
        declared = json_object(path).get("data_subtype")
    if isinstance(declared, str) and declared:
        return declared
    named = _SUBSET.search(annotations_path.name) or _SUBSET.search(path.name)
    return named[0] if named else ""


def _coco_image(path: Path, number: int, subsets: list[str], options: ReadOptions) -> bytes:
    """Return the image with a COCO number from one of `subsets`."""
    for subset in subsets:
        for name in (f"COCO_{subset}_{number:012d}.jpg", f"{subset}_{number:012d}.jpg", f"{number:012d}.jpg"):
            for candidate in (name, f"{subset}/{name}") if options.media else (name,):
                try:
                    return media_file(path, candidate, options, subset, "images", f"images/{subset}", "")
                except MissingFile:
                    continue
    raise MissingFile("a media file is missing", f"COCO_{subsets[0]}_{number:012d}.jpg")


def read_vizwiz(path: Path, options: ReadOptions) -> Found:
    """Yield the questions of VizWiz."""

    def convert(key: str, record: Any) -> Iterator[Document]:
        references = _answers(field(record, "answers", list))
        pair = (field(record, "question", str), _most_common(references))
        image = media_file(path, field(record, "image", str), options, path.stem, "images", "")
        yield _chat("vizwiz", key, image, [pair], references=references)

    return convert_records("vizwiz", json_list(path, names=("question",)), convert, limits=options.limits)


def read_visdial(path: Path, options: ReadOptions) -> Found:
    """Yield the dialogs of VisDial."""
    data = json_object(path).get("data")
    if not isinstance(data, dict):
        raise UserError(f"{path}: visdial requires an object 'data'.")
    for name in ("dialogs", "questions", "answers"):
        if not isinstance(data.get(name), list):
            raise UserError(f"{path}: visdial requires a list data.{name}.")

    def text(name: str, index: int) -> str:
        if not 0 <= index < len(data[name]) or not isinstance(data[name][index], str):
            raise RecordError("a turn names no question or answer of the file", f"{name} {index}")
        return data[name][index]

    def convert(key: str, record: Any) -> Iterator[Document]:
        pairs = [
            (text("questions", field(turn, "question", int)), text("answers", field(turn, "answer", int)))
            for turn in field(record, "dialog", list)
        ]
        subsets = ["train2014", "val2014", "VisualDialog_val2018", "VisualDialog_test2018"]
        image = _coco_image(path, field(record, "image_id", int), subsets, options)
        yield _chat("visdial", key, image, pairs)

    records = ((f"{path.name}:{number}", record) for number, record in enumerate(data["dialogs"]))
    return convert_records("visdial", records, convert, limits=options.limits)


VQAV2 = Source(
    "vqav2",
    "v2_OpenEnded_mscoco_*_questions.json (or questions.json), annotations next to it",
    ("questions.json",),
    functools.partial(_read_vqa, source="vqav2"),
)
OKVQA = Source(
    "okvqa",
    "OpenEnded_mscoco_*_questions.json (or questions.json), annotations next to it",
    ("questions.json",),
    functools.partial(_read_vqa, source="okvqa"),
)
VIZWIZ = Source(
    "vizwiz", "train.json of {image, question, answers}, images in train/ next to it", (".json",), read_vizwiz
)
VISDIAL = Source("visdial", "visdial_1.0_*.json, images in images/ next to it", (".json",), read_visdial)
