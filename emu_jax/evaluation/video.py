"""Parts that the video question answering tasks share. Their prompts are not public; these follow VQA's."""

import re
from collections.abc import Sequence

from emu_jax.data.chat_layout import SYSTEM_VIDEO
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.metrics.scores import HUNDREDFOLD, Scored, mean_score
from emu_jax.evaluation.predictors import GenerateText, short_answer
from emu_jax.evaluation.prompts import VQA_REQUEST, Template
from emu_jax.evaluation.question_answering import OPTIONS
from emu_jax.evaluation.task import ScoreOptions

SOURCE = "exact match as Flamingo (Alayrac et al. 2022); prompt after the Emu release's VQA, 8 uniform frames"
ANSWER = GenerateText(
    Template(VQA_REQUEST.replace("{media}", "video"), "the answer is:", SYSTEM_VIDEO), OPTIONS, short_answer
)


def exact_match(examples: Sequence[Example], answers: Sequence[str], options: ScoreOptions) -> Scored:
    """Return the fraction of answers equal to the one true answer, without case, articles and a final full stop."""
    del options
    hits = [
        float(_normal(answer) == _normal(example.references[0]))
        for example, answer in zip(examples, answers, strict=True)
    ]
    return Scored({"accuracy": mean_score(hits, scale=100, unit=HUNDREDFOLD)}, hits)


def _normal(text: str) -> str:
    return re.sub(r"^(a|an|the) ", "", text.strip().lower().removesuffix("."))
