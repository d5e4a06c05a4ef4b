"""Autoencoding of COCO's val2014: an image through the encoder and the visual decoder, scored as Emu2 reports it."""

import dataclasses
import functools

from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.image_generation import (
    FID_SIDE,
    GenerateImages,
    check_file,
    coco_captions,
    image_file,
    image_metric,
)
from emu_jax.evaluation.task import Task
from emu_jax.generation.options import ImageOptions


def read(data: DataRoot, split: str) -> list[Example]:
    examples = coco_captions(data, split)
    return [dataclasses.replace(example, media=(example.details["image"],), text="") for example in examples]


TASK = Task(
    name="autoencoding",
    title="Autoencoding of COCO images",
    files={
        "autoencoding/captions_val2014.json": "COCO's captions, which choose the images",
        "coco/val2014/": "COCO_val2014_*.jpg",
    },
    splits=("val",),
    source="Emu2 paper: FID and CLIP-I between images and their reconstructions",
    read=read,
    key_fields=("image_id",),
    value_field="file",
    check=check_file,
    predictor=GenerateImages(ImageOptions(), image_file, side=FID_SIDE, autoencode=True),
    metric=functools.partial(image_metric, fid=True, texts=False),
    headline="FID",
    makes_images=True,
)
