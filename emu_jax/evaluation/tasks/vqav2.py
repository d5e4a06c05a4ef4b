"""VQAv2, open-ended: validation with scores, test-dev and test as files for the server."""

from emu_jax.evaluation.coco import vqa_examples
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.question_answering import ANSWER, vqa_metric
from emu_jax.evaluation.task import Task, check_text, rows_for_server

_SUBSETS = {"val": "val2014", "train": "train2014", "test-dev": "test-dev2015", "test": "test2015"}


def read(data: DataRoot, split: str) -> list[Example]:
    subset = _SUBSETS[split]
    return vqa_examples(
        data,
        questions=f"v2_OpenEnded_mscoco_{subset}_questions.json",
        annotations=f"v2_mscoco_{subset}_annotations.json" if split in ("val", "train") else None,
        subset=subset,
    )


TASK = Task(
    name="vqav2",
    title="VQAv2",
    files={
        "vqav2/v2_OpenEnded_mscoco_val2014_questions.json": "questions",
        "vqav2/v2_mscoco_val2014_annotations.json": "answers",
        "coco/val2014/": "COCO_val2014_*.jpg",
        "vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json, coco/test2015/": "for --split test-dev",
        "vqav2/v2_*_mscoco_train2014_*.json, coco/train2014/": "for --shots",
    },
    splits=("val", "test-dev", "test"),
    source="Emu release, mm_eval/datasets/vqav2.py and vqa_tools/vqa_eval.py",
    read=read,
    key_fields=("question_id",),
    value_field="answer",
    check=check_text,
    predictor=ANSWER,
    metric=vqa_metric(),
    headline="overall",
    server_file=("vqa_results.json", rows_for_server(("question_id",), "answer")),
    training_split="train",
)
