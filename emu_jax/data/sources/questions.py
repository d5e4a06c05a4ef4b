"""Questions about images: VQAv2, OK-VQA, VizWiz, VisDial; each a chat whose answer is the one most people gave.

`vqav2`, `okvqa`: a `..._questions.json`; the `..._annotations.json` of the same split lies beside it, and the images in
`train2014/COCO_train2014_000000000009.jpg` (or under `--media`).

`vizwiz`: `train.json`, a list of {"image", "question", "answers"}; images in `train/`, or `images/`.

`visdial`: `visdial_1.0_train.json`; images as COCO names them, in `images/` or `--media`; a dialog is one chat.
"""

import collections
import functools
from pathlib import Path
from typing import Any

from emu_jax.data.document import Document, Image, Layout, Role, Segment, Text
from emu_jax.data.sources.base import Found, ReadOptions, Rejected, Source, field, json_list, json_object
from emu_jax.data.sources.media import media_file
from emu_jax.errors import UserError


def _chat(source: str, key: str, image: bytes, turns: list[tuple[str, str]]) -> Document:
    segments: list[Segment] = [Image(image, Role.USER)]
    for question, answer in turns:
        if not question.strip() or not answer.strip():
            raise ValueError("a question or an answer is empty")
        segments += [Text(question.strip(), Role.USER), Text(answer.strip(), Role.ASSISTANT)]
    return Document(tuple(segments), source=source, key=key, layout=Layout.CHAT)


def _most_common(answers: list[Any]) -> str:
    counts = collections.Counter(field(answer, "answer", str).strip() for answer in answers)
    counts.pop("", None)
    if not counts:
        raise ValueError("there is no answer")
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _read_vqa(path: Path, options: ReadOptions, *, source: str) -> Found:
    questions = json_object(path, "questions", list)
    beside = path.with_name(path.name.replace("OpenEnded_", "").replace("questions", "annotations"))
    if not path.name.endswith("questions.json") or not beside.exists():
        raise UserError(f"{path}: {source} wants a ..._questions.json with its ..._annotations.json beside it.")
    answers = {a["question_id"]: a for a in json_object(beside, "annotations", list) if isinstance(a, dict)}
    subset = beside.name.removeprefix("v2_").split("_")[1]  # mscoco_train2014_annotations.json
    for number, record in enumerate(questions):
        key = f"{path.name}:{number}"
        try:
            annotation = answers.get(field(record, "question_id", int))
            if annotation is None or annotation.get("image_id") != field(record, "image_id", int):
                raise ValueError("the question has no annotation")
            image = _coco_image(path, record["image_id"], subset, options)
            answer = _most_common(field(annotation, "answers", list))
            yield _chat(source, key, image, [(field(record, "question", str), answer)])
        except ValueError as error:
            yield Rejected(source, key, str(error))


def _coco_image(path: Path, number: int, subset: str, options: ReadOptions) -> bytes:
    names = (f"COCO_{subset}_{number:012d}.jpg", f"{number:012d}.jpg")
    for name in names:
        try:
            return media_file(path, name, options, subset, "images", "")
        except ValueError:
            continue
    raise ValueError(f"the file {names[0]!r} is not there")


def read_vizwiz(path: Path, options: ReadOptions) -> Found:
    for number, record in enumerate(json_list(path)):
        key = f"{path.name}:{number}"
        try:
            image = media_file(path, field(record, "image", str), options, path.stem, "images", "")
            answer = _most_common(field(record, "answers", list))
            yield _chat("vizwiz", key, image, [(field(record, "question", str), answer)])
        except ValueError as error:
            yield Rejected("vizwiz", key, str(error))


def read_visdial(path: Path, options: ReadOptions) -> Found:
    data = json_object(path, "data", dict)
    for name in ("dialogs", "questions", "answers"):
        if not isinstance(data.get(name), list):
            raise UserError(f"{path}: visdial wants data.{name}.")
    for number, record in enumerate(data["dialogs"]):
        key = f"{path.name}:{number}"
        try:
            turns = []
            for turn in field(record, "dialog", list):
                question, answer = field(turn, "question", int), field(turn, "answer", int)
                if not 0 <= question < len(data["questions"]) or not 0 <= answer < len(data["answers"]):
                    raise ValueError("a turn names no question or answer of the file")
                turns.append((str(data["questions"][question]), str(data["answers"][answer])))
            image_id = field(record, "image_id", int)
            yield _chat("visdial", key, _visdial_image(path, image_id, options), turns)
        except ValueError as error:
            yield Rejected("visdial", key, str(error))


def _visdial_image(path: Path, number: int, options: ReadOptions) -> bytes:
    for subset in ("train2014", "val2014", "VisualDialog_val2018", "VisualDialog_test2018"):
        try:
            return _coco_image(path, number, subset, options)
        except ValueError:
            continue
    name = f"VisualDialog_val2018_{number:012d}.jpg"
    return media_file(path, name, options, "VisualDialog_val2018", "images", "")


VQAV2 = Source(
    "vqav2", "v2_OpenEnded_mscoco_*_questions.json, annotations beside it", functools.partial(_read_vqa, source="vqav2")
)
OKVQA = Source(
    "okvqa", "OpenEnded_mscoco_*_questions.json, annotations beside it", functools.partial(_read_vqa, source="okvqa")
)
VIZWIZ = Source("vizwiz", "train.json of {image, question, answers}, images in train/ beside it", read_vizwiz)
VISDIAL = Source("visdial", "visdial_1.0_*.json, images in images/ beside it", read_visdial)
