"""COCO captions on Karpathy's test split."""

from emu_jax.evaluation.captioning import CAPTION, SOURCE, caption_metric
from emu_jax.evaluation.coco import karpathy_examples
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.task import Task, check_text, rows_for_server


def read(data: DataRoot, split: str) -> list[Example]:
    return karpathy_examples(data, split, dataset="coco", images=("coco", "images", "."))


TASK = Task(
    name="coco_karpathy",
    title="COCO captions, Karpathy split",
    files={
        "coco_karpathy/dataset_coco.json": "Karpathy's splits",
        "coco/val2014/": "COCO_val2014_*.jpg (few-shot: coco/train2014/ too)",
    },
    splits=("test", "val"),
    source=SOURCE,
    read=read,
    key_fields=("image_id",),
    value_field="caption",
    check=check_text,
    predictor=CAPTION,
    metric=caption_metric,
    headline="CIDEr",
    server_file=("captions_results.json", rows_for_server(("image_id",), "caption")),
    training_split="train",
)
