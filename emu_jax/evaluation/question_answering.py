"""Parts that the VQA tasks share: prompt and options of the release, and the metric by either protocol."""

from collections.abc import Callable, Sequence

from emu_jax.evaluation.example import Example
from emu_jax.evaluation.metrics.scores import Scored
from emu_jax.evaluation.metrics.vqa import porter_stemmer, score_vqa, vqa_accuracy
from emu_jax.evaluation.predictors import GenerateText, short_answer
from emu_jax.evaluation.prompts import VQA_REQUEST, Template
from emu_jax.evaluation.task import Metric, ScoreOptions
from emu_jax.generation.options import TextOptions

OPTIONS = TextOptions(max_new_tokens=20, num_beams=5, length_penalty=-1.0, min_length=1)
ANSWER = GenerateText(Template(VQA_REQUEST.replace("{media}", "image"), "the answer is:"), OPTIONS, short_answer)


def vqa_metric(*, stemmed: bool = False, groups: Sequence[str] = ("answer_type", "question_type")) -> Metric:
    """Return a metric: VQA accuracy over all questions and per group, "answer_type" as "per_answer_type".

    Args:
      stemmed: Porter-stem complete answers, as the OK-VQA code of the release does.
    """

    def metric(examples: Sequence[Example], answers: Sequence[str], options: ScoreOptions) -> Scored:
        stem: Callable[[str], str] | None = porter_stemmer() if stemmed else None
        accuracies = [
            vqa_accuracy(answer, example.references, protocol=options.vqa_protocol, stem=stem)
            for example, answer in zip(examples, answers, strict=True)
        ]
        scored = score_vqa(
            accuracies,
            question_ids=[example.key[0] for example in examples],
            groups={f"per_{name}": [example.details[name] for example in examples] for name in groups},
        )
        protocol = {"vqa_protocol": options.vqa_protocol.value, "stemmed": stemmed}
        return Scored(scored.scores, scored.per_example, scored.each, protocol)

    return metric
