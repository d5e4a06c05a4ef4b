"""NoCaps: captions of images with in-domain, near-domain and out-of-domain objects."""

from collections.abc import Sequence

from emu_jax.evaluation.captioning import CAPTION, SOURCE
from emu_jax.evaluation.coco import caption_file_examples
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.metrics.captions import score_captions, tokenize_captions
from emu_jax.evaluation.metrics.scores import Score, Scored
from emu_jax.evaluation.task import ScoreOptions, Task, check_text, rows_for_server

_DOMAINS = {"in": "in-domain", "near": "near-domain", "out": "out-domain"}
_FILES = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}


def read(data: DataRoot, split: str) -> list[Example]:
    return caption_file_examples(data, file=_FILES[split], images=(split, "images"), details=("domain",))


def metric(examples: Sequence[Example], captions: Sequence[str], options: ScoreOptions) -> Scored:
    """Score all images, and each domain with the references of that domain, as the benchmark's server does."""
    del options
    tokens = tokenize_captions(captions, [example.references for example in examples])
    scores: dict[str, dict[str, Score]] = {}
    for name, domain in _DOMAINS.items():
        rows = [i for i, example in enumerate(examples) if example.details["domain"] == domain]
        if rows:
            scores[name] = dict(score_captions(tokens.rows(rows), meteor=False).scores)  # type: ignore[arg-type]
    overall = score_captions(tokens)
    scores["overall"] = dict(overall.scores)  # type: ignore[arg-type]
    each = {**overall.each, "order": [example.key[0] for example in examples]}
    return Scored(scores, overall.per_example, each, overall.protocol)


TASK = Task(
    name="nocaps",
    title="NoCaps captions",
    files={
        "nocaps/nocaps_val_4500_captions.json": "captions of the validation images",
        "nocaps/val/": "validation images by file_name",
        "nocaps/nocaps_test_image_info.json, nocaps/test/": "for --split test",
    },
    splits=("val", "test"),
    source=SOURCE,
    read=read,
    key_fields=("image_id",),
    value_field="caption",
    check=check_text,
    predictor=CAPTION,
    metric=metric,
    headline="overall/CIDEr",
    server_file=("nocaps_results.json", rows_for_server(("image_id",), "caption")),
)
