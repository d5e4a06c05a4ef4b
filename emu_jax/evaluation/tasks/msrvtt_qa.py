"""MSRVTT-QA: questions about web video clips, with one-word answers."""

from typing import Any

from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.task import Task, check_text
from emu_jax.evaluation.video import ANSWER, SOURCE, exact_match


def read(data: DataRoot, split: str) -> list[Example]:
    folder = data.folder("TestVideo" if split == "test" else "TrainValVideo", "videos")

    def parse(value: Any) -> list[Example]:
        return [
            Example(
                key=(row["id"],),
                media=(folder / f"video{row['video_id']}.mp4",),
                text=row["question"],
                references=(row["answer"],),
            )
            for row in value
        ]

    return data.parse(f"{split}_qa.json", parse)


TASK = Task(
    name="msrvtt_qa",
    title="MSRVTT-QA",
    files={
        "msrvtt_qa/test_qa.json": "questions and answers (val_qa.json, train_qa.json likewise)",
        "msrvtt_qa/TestVideo/": "videoN.mp4 (TrainValVideo/ for the other splits), or all in videos/",
    },
    splits=("test", "val"),
    source=SOURCE,
    read=read,
    key_fields=("id",),
    value_field="answer",
    check=check_text,
    predictor=ANSWER,
    metric=exact_match,
    headline="accuracy",
    training_split="train",
)
