"""Files of predictions: what is refused, and what survives a kill."""

from __future__ import annotations

import json

import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation.catalog import find_task
from emu_jax.evaluation.predictions import PredictionFile, read_predictions
from emu_jax.evaluation.scoring import Selection, read_examples, score_file
from emu_jax.evaluation.task import ScoreOptions
from tests.evaluation.layouts import dump, vqa_rows, write_layout

GOOD = [{"question_id": n, "answer": "red"} for n in (10, 20, 30)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def root(tmp_path):
    return write_layout("vqav2", tmp_path / "data")


def score(root, path, **selection):
    return score_file(find_task("vqav2"), root, path, selection=Selection(**selection), options=ScoreOptions())


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([*GOOD, GOOD[0]], "line 4: question_id 10 has two predictions"),
        ([*GOOD, {"question_id": 77, "answer": "a"}], "question_id 77 is not in this split of vqav2"),
        ([{"question_id": 10}], "line 1 has no answer; a line of vqav2 has question_id, answer"),
        ([{"question_id": 10, "answer": 3}], "answer is 3, not a text"),
        ([], "holds no prediction"),
        (GOOD[:2], r"1 of 3 examples of vqav2 are missing \(30: no prediction\).*--max-missing 1"),
    ],
)
def test_bad_predictions_are_one_line(root, tmp_path, rows, line):
    with pytest.raises(UserError, match=line) as caught:
        score(root, write(tmp_path / "p.jsonl", rows))
    assert "\n" not in str(caught.value)


def test_an_id_may_be_a_string_of_digits(root, tmp_path):
    strings = [{**row, "question_id": str(row["question_id"])} for row in GOOD]
    assert (
        score(root, write(tmp_path / "p.jsonl", strings)).summary()["official"]
        == score(root, write(tmp_path / "q.jsonl", GOOD)).summary()["official"]
    )
    with pytest.raises(UserError, match="line 4: question_id 10 has two predictions"):
        score(root, write(tmp_path / "p.jsonl", [*GOOD, strings[0]]))


def test_lines_that_are_no_json(root, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"question_id": 10, "answer": "red"}\n{"question')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        score(root, tmp_path / "p.jsonl")


def test_missing_predictions_are_counted(root, tmp_path):
    summary = score(root, write(tmp_path / "p.jsonl", GOOD[:2]), max_missing=1).summary()
    assert summary["num_examples"] == 2
    assert summary["num_examples_in_split"] == 3
    assert summary["missing"] == {"30": "no prediction"}


def test_annotations_of_another_split(root, tmp_path):
    predictions = write(tmp_path / "p.jsonl", GOOD)
    questions, annotations = vqa_rows("train2014", 1, 3)
    dump(root / "vqav2/v2_mscoco_val2014_annotations.json", annotations)
    with pytest.raises(UserError, match="belongs to the split train2014, not to val2014"):
        score(root, predictions)
    _, others = vqa_rows("val2014", 50, 3)
    dump(root / "vqav2/v2_mscoco_val2014_annotations.json", others)
    with pytest.raises(UserError, match=r"has no answers for question 10.*another split"):
        score(root, predictions)
    dump(root / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": []})
    with pytest.raises(UserError, match="has no examples of the split val"):
        score(root, predictions)
    dump(root / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", questions["questions"])
    with pytest.raises(UserError, match="does not have the published layout of vqav2"):
        score(root, predictions)


def test_a_split_that_a_task_does_not_have(root):
    with pytest.raises(UserError, match="vqav2 has the splits val, test-dev, test, not 'dev'"):
        read_examples(find_task("vqav2"), root, Selection("dev"))


def test_rankings_are_permutations(tmp_path):
    root = write_layout("visdial", tmp_path)
    task = find_task("visdial")
    examples = read_examples(task, root, Selection())
    row = {"image_id": 1, "round_id": 1, "ranks": [1] * 100}
    with pytest.raises(UserError, match="must give each of 100 options one rank"):
        read_predictions(write(tmp_path / "p.jsonl", [row]), task, examples)


def test_parts_of_several_processes_become_one_file(root, tmp_path):
    task = find_task("vqav2")
    examples = read_examples(task, root, Selection())
    files = [PredictionFile(tmp_path / "out", task, process=i, processes=2) for i in range(2)]
    files[1].append([(30,), (10,)], ["c", "a"])
    files[0].skip((20,), "broken")
    for file in files:
        file.close()
    with (tmp_path / "out/predictions-00001-of-00002.jsonl").open("a") as stream:
        stream.write('{"question_id": 20, "ans')  # killed while writing
    predictions, skipped = PredictionFile(tmp_path / "out", task).finish(examples)
    assert predictions == {(10,): "a", (30,): "c"}
    assert skipped == {(20,): "broken"}
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["question_id"] for line in lines] == [10, 30]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.jsonl", "skipped.jsonl"]
