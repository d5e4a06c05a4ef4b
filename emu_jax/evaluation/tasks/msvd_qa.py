"""MSVD-QA: questions about short video clips, with one-word answers."""

from typing import Any

from emu_jax.errors import UserError
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.task import Task, check_text
from emu_jax.evaluation.video import ANSWER, SOURCE, exact_match

_MAPPING = "youtube_mapping.txt"


def read(data: DataRoot, split: str) -> list[Example]:
    folder = data.folder("YouTubeClips", "videos")
    pairs = [line.split()[:2] for line in data.lines(_MAPPING)]
    names = {number: clip for clip, number in pairs}

    def parse(value: Any) -> list[Example]:
        return [
            Example(
                key=(row["id"],),
                media=(folder / f"{name(row['video_id'])}.avi",),
                text=row["question"],
                references=(row["answer"],),
            )
            for row in value
        ]

    def name(number: int) -> str:
        if f"vid{number}" not in names:
            raise UserError(f"{data.file(_MAPPING)} has no line for vid{number}.")
        return names[f"vid{number}"]

    return data.parse(f"{split}_qa.json", parse)


TASK = Task(
    name="msvd_qa",
    title="MSVD-QA",
    files={
        "msvd_qa/test_qa.json": "questions and answers (val_qa.json, train_qa.json likewise)",
        "msvd_qa/youtube_mapping.txt": "lines of CLIP vidN",
        "msvd_qa/YouTubeClips/": "CLIP.avi",
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
