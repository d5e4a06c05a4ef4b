"""NExT-QA, open-ended: causal, temporal and descriptive questions about videos, scored by WUPS."""

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from emu_jax.errors import UserError
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.metrics.scores import HUNDREDFOLD, Score, Scored, mean_score
from emu_jax.evaluation.metrics.wups import wordnet_lemma, wordnet_similarity, wups
from emu_jax.evaluation.task import ScoreOptions, Task, check_text
from emu_jax.evaluation.video import ANSWER

_EXACT = ("DB", "DC")  # yes or no, and counts: equal or not
_KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}
_STOP_WORDS = frozenset("a an and at he her him his in is it of on she the their them they to".split())  # noqa: SIM905
_COLUMNS = ("video", "question", "answer", "qid", "type")


def read(data: DataRoot, split: str) -> list[Example]:
    folder = data.folder("videos")
    paths = data.json("map_vid_vidorID.json") if data.has("map_vid_vidorID.json") else {}
    others_file = f"add_reference_answer_{split}.json"
    others = data.json(others_file) if data.has(others_file) else {}
    rows = list(csv.DictReader(data.lines(f"{split}.csv")))
    if rows and not set(_COLUMNS) <= rows[0].keys():
        raise UserError(f"{data.file(f'{split}.csv')} has no columns {', '.join(_COLUMNS)}.")
    examples = []
    for row in rows:
        other = others.get(row["video"], {}).get(row["qid"])
        examples.append(
            Example(
                key=(row["video"], row["qid"]),
                media=(folder / f"{paths.get(row['video'], row['video'])}.mp4",),
                text=row["question"],
                references=(row["answer"], *([other] if other else [])),
                details={"type": row["type"]},
            )
        )
    return examples


def metric(examples: Sequence[Example], answers: Sequence[str], options: ScoreOptions) -> Scored:
    """Return WUPS@0 (the benchmark's main score) and WUPS@0.9, over all questions and by kind."""
    del options
    words, similarity = _words(), wordnet_similarity()
    by_threshold: dict[str, list[float]] = {}
    for name, threshold in (("WUPS@0", 0.0), ("WUPS@0.9", 0.9)):
        by_threshold[name] = []
        for example, answer in zip(examples, answers, strict=True):
            said = words(answer)
            true = [words(text) for text in example.references]
            if example.details["type"] in _EXACT:
                value = float(any(said == one for one in true))
            else:
                value = max(wups(said, one, threshold=threshold, similarity=similarity) for one in true)
            by_threshold[name].append(value)
    scores: dict[str, Score | dict[str, Score]] = {
        name: mean_score(values, scale=100, unit=HUNDREDFOLD) for name, values in by_threshold.items()
    }
    groups: dict[str, list[float]] = defaultdict(list)
    for example, value in zip(examples, by_threshold["WUPS@0"], strict=True):
        groups[_KINDS[example.details["type"][0]]].append(value)
    scores["per_kind"] = {name: mean_score(values, scale=100, unit=HUNDREDFOLD) for name, values in groups.items()}
    protocol = {"lemmas": "WordNet morphy without part-of-speech tags; the benchmark's code tags with pywsd"}
    return Scored(scores, by_threshold["WUPS@0"], {}, protocol)


def answers_by_video(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return `{VIDEO: {QID: answer}}`, the file that the benchmark's eval_oe.py reads."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for example, answer in zip(examples, answers, strict=True):
        video, question = map(str, example.key)
        found[video][question] = answer
    return dict(found)


def _words() -> Callable[[str], list[str]]:
    lemma = wordnet_lemma()
    return lambda text: [w for w in map(lemma, re.findall(r"\w+", text.lower())) if w not in _STOP_WORDS]


TASK = Task(
    name="nextqa",
    title="NExT-QA, open-ended",
    files={
        "nextqa/test.csv": "video, question, answer, qid, type (val.csv, train.csv likewise)",
        "nextqa/add_reference_answer_test.json": "second answers",
        "nextqa/map_vid_vidorID.json": "path of each video under videos/",
        "nextqa/videos/": "PATH.mp4, or VIDEO.mp4 without the map",
    },
    splits=("test", "val"),
    source="WUPS of doc-doc/NExT-OE eval_oe.py; prompt after the Emu release's VQA, 8 uniform frames",
    read=read,
    key_fields=("video", "qid"),
    value_field="answer",
    check=check_text,
    predictor=ANSWER,
    metric=metric,
    headline="WUPS@0",
    server_file=("nextqa_results.json", answers_by_video),
    training_split="train",
)
