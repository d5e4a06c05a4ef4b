"""A broken record of a JSON list or of JSON lines costs only itself."""

import json

import pytest

from emu_jax.data.bad_data import RecordError
from emu_jax.data.limits import Limits
from emu_jax.data.sources.json_files import json_list, json_records
from emu_jax.errors import UserError

NAMES = ("conversations",)


def record(n):
    return {"id": n, "conversations": [{"from": "human", "value": f"a {{brace}} [{n}]"}, {"from": "gpt", "value": "b"}]}


def text(count=6):
    return json.dumps([record(n) for n in range(count)])


def ids(path, data, **options):
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))
    return [r if isinstance(r, RecordError) else r["id"] for _, r in json_list(path, names=NAMES, **options)]


def shape(found):
    return ["x" if isinstance(r, RecordError) else r for r in found]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('{"id": 2, ', '{"id": 2 '),  # a missing comma in the record
        ('{"id": 2, ', '{"id": , '),
        ('{"id": 2, ', '{"id": 2, "id": 3, '),  # a name twice
        ('{"id": 2, ', '{"id": 2, "a": "\udcff", '),  # a byte that is not UTF-8
        ('{"id": 2, "conversations": [{', '{"id": 2, "conversations": [{{'),
        ('{"id": 2, ', '{"id": 2, "a": "no end, '),
        ("[2]", "[2]\n"),  # a line break in a string
        ('{"id": 2, ', '{"id": 2, "deep": ' + "[" * 100_000 + ", "),
    ],
)
def test_a_broken_record_costs_itself(tmp_path, old, new):
    found = ids(tmp_path / "a.json", text().replace(old, new, 1))
    assert shape(found) == [0, 1, "x", 3, 4, 5]


def test_a_trailing_comma_costs_nothing(tmp_path):
    assert ids(tmp_path / "a.json", text()[:-1] + ",]") == list(range(6))


@pytest.mark.parametrize("size", [0.3, 0.5, 0.9])
def test_a_truncated_list_loses_its_end(tmp_path, size):
    data = text()
    found = ids(tmp_path / "a.json", data[: int(size * len(data))])
    assert shape(found)[-1] == "x"
    assert found[:-1] == list(range(len(found) - 1))


def test_a_list_in_an_object(tmp_path):
    data = json.dumps({"info": {"a": []}, "questions": [record(n) for n in range(4)]})
    assert ids(tmp_path / "a.json", data, of="questions") == [0, 1, 2, 3]
    assert shape(ids(tmp_path / "a.json", data.replace('"id": 1,', '"id" 1,'), of="questions")) == [0, "x", 2, 3]
    with pytest.raises(UserError, match="'answers' is missing"):
        ids(tmp_path / "a.json", data, of="answers")


@pytest.mark.parametrize("data", ["", "{", "[", "[{]", '"text"', "3", "not json"])
def test_a_file_without_records_is_a_user_error(tmp_path, data):
    with pytest.raises(UserError, match=r"a\.json"):
        ids(tmp_path / "a.json", data)


def test_lines_and_lists_differ_by_their_first_character(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + "\n".join(json.dumps(record(n)) for n in range(3)) + "\n\n{broken\n")
    found = json_records(path, Limits(), names=NAMES)
    for _ in range(2):
        assert shape([r if isinstance(r, RecordError) else r["id"] for _, r in found]) == [0, 1, 2, "x"]
    path.write_text(" " + text(2))
    assert [r["id"] for _, r in json_records(path, Limits(), names=NAMES)] == [0, 1]


def test_a_line_that_is_too_long_costs_itself(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record(n) | {"a": "x" * (9000 if n == 1 else 1)}) + "\n" for n in range(3)))
    records = json_records(path, Limits(line_bytes=1000), names=NAMES)
    found = [r if isinstance(r, RecordError) else r["id"] for _, r in records]
    assert shape(found) == [0, "x", 2]
    assert found[1].reason == "the line is too long"
