"""NExT-QA, open-ended: causal, temporal and descriptive questions about videos, scored by WUPS."""

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence

from emu_jax.errors import UserError
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.metrics.scores import HUNDREDFOLD, Score, Scored, mean_score
from emu_jax.evaluation.metrics.wups import word_tokenizer, wordnet_lemma, wordnet_similarity, wups
from emu_jax.evaluation.task import ScoreOptions, Task, check_text
from emu_jax.evaluation.video import ANSWER

_EXACT = ("DB", "DC")  # yes or no, and counts: equal or not
_KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}
_STOP_WORDS = """\
i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves he him his
himself she she's her hers herself it it's its itself they them their theirs themselves what which who whom this
that that'll these those am is are was were be been being have has had having do does did doing a an the and but if
or because as until while to from of at for with about into through during again further then here there when where
why how all any each most other some such only own so than too very s t can will just don don't should should've
now d ll m o re ve y ain aren aren't couldn couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't haven
haven't isn isn't ma mightn mightn't mustn mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't weren
weren't won won't wouldn wouldn't"""  # of NExT-OE; "no", "not", "up", "down", "in", "on" and others are not among them
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
    protocol = {"lemmas": "by WordNet without part-of-speech tags; the benchmark's code tags with pywsd"}
    return Scored(scores, by_threshold["WUPS@0"], {}, protocol)


def answers_by_video(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return `{VIDEO: {QID: answer}}`, the file that the benchmark's eval_oe.py reads."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for example, answer in zip(examples, answers, strict=True):
        video, question = map(str, example.key)
        found[video][question] = answer
    return dict(found)


def _words() -> Callable[[str], list[str]]:
    lemma, split, stop_words = wordnet_lemma(), word_tokenizer(), frozenset(_STOP_WORDS.split())
    return lambda text: [word for word in map(lemma, split(text.lower())) if word not in stop_words]


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
