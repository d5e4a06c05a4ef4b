"""MM-Vet: open questions that combine capabilities, graded by a language model."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.metrics.scores import Score, Scored, bootstrap_interval
from emu_jax.evaluation.predictors import GenerateText, strip
from emu_jax.evaluation.prompts import Template
from emu_jax.evaluation.task import ScoreOptions, Task, check_text
from emu_jax.generation.options import TextOptions


def read(data: DataRoot, split: str) -> list[Example]:
    del split
    folder = data.folder("images")

    def parse(value: Any) -> list[Example]:
        return [
            Example(
                key=(name,),
                media=(folder / row["imagename"],),
                text=row["question"],
                references=(row["answer"],),
                details={"capability": tuple(row["capability"])},
            )
            for name, row in value.items()
        ]

    return data.parse("mm-vet.json", parse)


def metric(examples: Sequence[Example], answers: Sequence[str], options: ScoreOptions) -> Scored | None:
    """Return the mean grade in percent, overall and per capability, and the deviation between the grader's runs."""
    grader = options.grader
    if grader is None:
        return None
    questions = [
        (str(example.key[0]), example.text, example.references[0], answer)
        for example, answer in zip(examples, answers, strict=True)
    ]
    rows = {identity: row for row, (identity, *_) in enumerate(questions)}
    grades = np.zeros((len(questions), grader.runs))
    for grade in grader.grade(questions):
        grades[rows[grade.identity], grade.run] = 100 * grade.score
    means = grades.mean(axis=1)
    members: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        for capability in example.details["capability"]:
            members[capability].append(row)
    scores: dict[str, Score | dict[str, Score]] = {
        "total": _score(means),
        "std": Score(float(grades.mean(axis=0).std()), grader.runs, unit="percent, over runs of the grader"),
        "per_capability": {name: _score(means[chosen]) for name, chosen in members.items()},
    }
    return Scored(scores, means.tolist(), {}, {"grader": grader.model, "grader_runs": grader.runs})


def _score(values: np.ndarray) -> Score:
    return Score(float(values.mean()), len(values), interval=bootstrap_interval(values))


TASK = Task(
    name="mmvet",
    title="MM-Vet",
    files={"mmvet/mm-vet.json": "questions, answers, capabilities", "mmvet/images/": "images by imagename"},
    splits=("test",),
    source="Emu release, mm_eval/datasets/mmvet.py; MM-Vet's evaluator with --judge-base-url",
    read=read,
    key_fields=("id",),
    value_field="answer",
    check=check_text,
    predictor=GenerateText(
        Template("{question}"), TextOptions(max_new_tokens=128, num_beams=5, length_penalty=1.0, min_length=1), strip
    ),
    metric=metric,
    headline="total",
    server_file=(
        "mmvet_results.json",
        lambda examples, answers: {str(e.key[0]): a for e, a in zip(examples, answers, strict=True)},
    ),
)
