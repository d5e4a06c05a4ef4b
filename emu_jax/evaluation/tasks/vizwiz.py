"""VizWiz-VQA: photographs by blind people; first whether the question can be answered, then the answer."""

import re
from typing import Any

from emu_jax.errors import UserError
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.predictors import AnswerabilityFirst
from emu_jax.evaluation.prompts import VQA_REQUEST, Template
from emu_jax.evaluation.question_answering import ANSWER, vqa_metric
from emu_jax.evaluation.task import Task, check_text, rows_for_server

_NAME = re.compile(r"VizWiz_(train|val|test)_")
_REQUEST = VQA_REQUEST.replace("{media}", "image")


def read(data: DataRoot, split: str) -> list[Example]:
    folder = data.folder(split, f"images/{split}")

    def parse(value: Any) -> list[Example]:
        others = {found[1] for row in value if (found := _NAME.match(row["image"]))} - {split}
        if others:
            raise UserError(f"{data.file(f'{split}.json')} belongs to the split {min(others)}, not to {split}.")
        return [
            Example(
                key=(row["image"],),
                media=(folder / row["image"],),
                text=row["question"],
                references=tuple(answer["answer"] for answer in row.get("answers", ())),
                details={"answer_type": row.get("answer_type", "unknown")},
            )
            for row in value
        ]

    return data.parse(f"{split}.json", parse)


TASK = Task(
    name="vizwiz",
    title="VizWiz-VQA",
    files={
        "vizwiz/val.json": "questions and answers (test.json for --split test, train.json for --shots)",
        "vizwiz/val/": "VizWiz_val_*.jpg (test/, train/ likewise)",
    },
    splits=("val", "test"),
    source="Emu release, mm_eval/datasets/vizwiz.py, which leaves scores to the server; accuracy as for VQAv2",
    read=read,
    key_fields=("image",),
    value_field="answer",
    check=check_text,
    predictor=AnswerabilityFirst(Template(f"{_REQUEST}, is the answer known?"), ANSWER),
    metric=vqa_metric(groups=("answer_type",)),
    headline="overall",
    server_file=("vizwiz_results.json", rows_for_server(("image",), "answer")),
    training_split="train",
)
