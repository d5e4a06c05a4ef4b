"""CLIP-T and CLIP-I of images generated from captions of COCO's val2014."""

import functools

from emu_jax.evaluation.image_generation import (
    FID_OPTIONS,
    GenerateImages,
    check_file,
    coco_captions,
    image_file,
    image_metric,
)
from emu_jax.evaluation.task import Task

TASK = Task(
    name="clip_score",
    title="CLIP scores of COCO text to image",
    files={
        "clip_score/captions_val2014.json": "COCO's captions",
        "coco/val2014/": "COCO_val2014_*.jpg, for CLIP-I",
    },
    splits=("val",),
    source="cosines of CLIP embeddings, image with caption (CLIP-T) and with the real image (CLIP-I); CLIP by --clip",
    read=coco_captions,
    key_fields=("image_id",),
    value_field="file",
    check=check_file,
    predictor=GenerateImages(FID_OPTIONS, image_file),
    metric=functools.partial(image_metric, fid=False, texts=True),
    headline="CLIP-T",
    makes_images=True,
)
