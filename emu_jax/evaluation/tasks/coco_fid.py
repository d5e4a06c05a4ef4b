"""FID of 30,000 images generated from captions of COCO's val2014."""

import functools

from emu_jax.evaluation.image_generation import (
    FID_OPTIONS,
    FID_SIDE,
    GenerateImages,
    check_file,
    coco_captions,
    image_file,
    image_metric,
)
from emu_jax.evaluation.task import Task

TASK = Task(
    name="coco_fid",
    title="COCO text to image",
    files={
        "coco_fid/captions_val2014.json": "COCO's captions",
        "coco/val2014/": "COCO_val2014_*.jpg, the reference images unless --fid-reference",
    },
    splits=("val",),
    source="Emu paper: 30,000 captions, guidance 5.0; weights pt_inception-2015-12-05 by --inception",
    read=coco_captions,
    key_fields=("image_id",),
    value_field="file",
    check=check_file,
    predictor=GenerateImages(FID_OPTIONS, image_file, side=FID_SIDE),
    metric=functools.partial(image_metric, fid=True, texts=True),
    headline="FID",
    server_file=(
        "captions.json",
        lambda examples, files: [{"image_id": e.key[0], "caption": e.text} for e in examples],
    ),
    makes_images=True,
)
