"""Parts that the captioning tasks share: prompt and options of the release, and the metric over groups of images."""

from collections.abc import Sequence

from emu_jax.evaluation.example import Example
from emu_jax.evaluation.metrics.captions import score_captions, tokenize_captions
from emu_jax.evaluation.metrics.scores import Scored
from emu_jax.evaluation.predictors import GenerateText, first_sentence
from emu_jax.evaluation.prompts import Template
from emu_jax.evaluation.task import ScoreOptions
from emu_jax.generation.options import TextOptions

SOURCE = "Emu release, mm_eval/datasets/coco.py; pycocoevalcap"
CAPTION = GenerateText(
    Template("please provide an accurate and concise description of the given image.", "the image depicts a photo of"),
    TextOptions(max_new_tokens=20, num_beams=5, length_penalty=-1.0, min_length=8),
    first_sentence,
)


def caption_metric(examples: Sequence[Example], captions: Sequence[str], options: ScoreOptions) -> Scored:
    """Score captions against people's; the official code's order of images is the order of the examples."""
    del options
    scored = score_captions(tokenize_captions(captions, [example.references for example in examples]))
    return Scored(
        scored.scores,
        scored.per_example,
        {**scored.each, "order": [example.key[0] for example in examples]},
        scored.protocol,
    )
