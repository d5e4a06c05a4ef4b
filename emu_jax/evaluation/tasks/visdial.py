"""VisDial v1.0: rank 100 candidate answers in each round of a dialog."""

from collections.abc import Sequence
from typing import Any

from emu_jax.data.chat_layout import SYSTEM_IMAGE
from emu_jax.errors import UserError
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.metrics.scores import Scored
from emu_jax.evaluation.metrics.visdial import score_visdial
from emu_jax.evaluation.predictors import RankOptions
from emu_jax.evaluation.task import ScoreOptions, Task, rows_for_server
from emu_jax.generation.prompt import Part

_PROMPT = f"{SYSTEM_IMAGE} [USER]: {{media}}</s> [USER]: {{question}}? [ASSISTANT]: {{answer}}.</s> ... [ASSISTANT]:"


def read(data: DataRoot, split: str) -> list[Example]:
    folder = data.folder(f"VisualDialog_{split}2018", "images")
    dense_file = f"visdial_1.0_{split}_dense_annotations.json"
    dense = data.parse(dense_file, _by_round) if data.has(dense_file) else {}

    def parse(value: Any) -> list[Example]:
        if value["split"] != f"{split}2018":
            raise UserError(f"{data.file(file)} belongs to the split {value['split']}, not to {split}2018.")
        questions, answers = value["data"]["questions"], value["data"]["answers"]
        examples = []
        for dialog in value["data"]["dialogs"]:
            history: list[tuple[str, str]] = []
            for number, turn in enumerate(dialog["dialog"], start=1):
                key = (dialog["image_id"], number)
                if "answer_options" in turn:
                    examples.append(
                        Example(
                            key=key,
                            media=(folder / f"VisualDialog_{split}2018_{dialog['image_id']:012d}.jpg",),
                            text=questions[turn["question"]],
                            references=(answers[turn["answer"]],) if "gt_index" in turn else (),
                            details={
                                "options": [answers[i] for i in turn["answer_options"]],
                                "correct": turn.get("gt_index"),
                                "relevance": dense.get(key),
                                "history": tuple(history),
                            },
                        )
                    )
                if "answer" in turn:
                    history.append((questions[turn["question"]], answers[turn["answer"]]))
        return examples

    file = f"visdial_1.0_{split}.json"
    return data.parse(file, parse)


def prompt(example: Example) -> list[Part]:
    """Return the image, the rounds so far, each closed by `</s>`, and the question."""
    past = "".join(f" [USER]: {q}? [ASSISTANT]: {a}.</s>" for q, a in example.details["history"])
    return [f"{SYSTEM_IMAGE} [USER]:", *example.media, f"</s>{past} [USER]: {example.text}? [ASSISTANT]:"]


def check(value: Any, example: Example) -> None:
    """Raise ValueError unless a prediction ranks each option once."""
    count = len(example.details["options"])
    if not isinstance(value, list) or sorted(value) != list(range(1, count + 1)):
        raise ValueError(f"must give each of {count} options one rank from 1 to {count}")


def metric(examples: Sequence[Example], ranks: Sequence[Sequence[int]], options: ScoreOptions) -> Scored:
    del options
    return score_visdial(
        ranks,
        correct=[example.details["correct"] for example in examples],
        relevance=[example.details["relevance"] for example in examples],
    )


def _by_round(value: Any) -> dict[tuple[int, int], list[float]]:
    return {(row["image_id"], row["round_id"]): row.get("gt_relevance", row.get("relevance")) for row in value}


TASK = Task(
    name="visdial",
    title="VisDial v1.0",
    files={
        "visdial/visdial_1.0_val.json": "dialogs",
        "visdial/visdial_1.0_val_dense_annotations.json": "relevance of the options, for NDCG",
        "visdial/VisualDialog_val2018/": "VisualDialog_val2018_*.jpg",
        "visdial/visdial_1.0_test.json, visdial/VisualDialog_test2018/": "for --split test",
    },
    splits=("val", "test"),
    source="Emu release, mm_eval/datasets/visdial.py and models/prediction_mixin.py; VisDial's evaluation server",
    read=read,
    key_fields=("image_id", "round_id"),
    value_field="ranks",
    check=check,
    predictor=RankOptions(prompt, _PROMPT),
    metric=metric,
    headline="NDCG",
    server_file=("visdial_results.json", rows_for_server(("image_id", "round_id"), "ranks")),
)
