"""OK-VQA: questions that require outside knowledge. The release Porter-stems complete answers."""

from emu_jax.evaluation.coco import vqa_examples
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.question_answering import ANSWER, vqa_metric
from emu_jax.evaluation.task import Task, check_text, rows_for_server

_SUBSETS = {"val": "val2014", "train": "train2014"}


def read(data: DataRoot, split: str) -> list[Example]:
    subset = _SUBSETS[split]
    return vqa_examples(
        data,
        questions=f"OpenEnded_mscoco_{subset}_questions.json",
        annotations=f"mscoco_{subset}_annotations.json",
        subset=subset,
    )


TASK = Task(
    name="okvqa",
    title="OK-VQA",
    files={
        "okvqa/OpenEnded_mscoco_val2014_questions.json": "questions",
        "okvqa/mscoco_val2014_annotations.json": "answers",
        "coco/val2014/": "COCO_val2014_*.jpg",
        "okvqa/*mscoco_train2014*.json, coco/train2014/": "for --shots",
    },
    splits=("val",),
    source="Emu release, mm_eval/datasets/okvqa.py and vqa_tools/vqa_eval.py",
    read=read,
    key_fields=("question_id",),
    value_field="answer",
    check=check_text,
    predictor=ANSWER,
    metric=vqa_metric(stemmed=True),
    headline="overall",
    server_file=("okvqa_results.json", rows_for_server(("question_id",), "answer")),
    training_split="train",
)
