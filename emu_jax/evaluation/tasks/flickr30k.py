"""Flickr30k captions on Karpathy's test split; an image id is the number in the name of the file."""

from emu_jax.evaluation.captioning import CAPTION, SOURCE, caption_metric
from emu_jax.evaluation.coco import karpathy_examples
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.task import Task, check_text, rows_for_server


def read(data: DataRoot, split: str) -> list[Example]:
    return karpathy_examples(data, split, dataset="flickr30k", images=("flickr30k-images", "images"))


TASK = Task(
    name="flickr30k",
    title="Flickr30k captions, Karpathy split",
    files={
        "flickr30k/dataset_flickr30k.json": "Karpathy's splits",
        "flickr30k/flickr30k-images/": "*.jpg",
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
