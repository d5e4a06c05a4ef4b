"""`prepare-data --check`: a dry run that names the bad rows of a chat data set."""

import io
import json

import PIL.Image
import pytest

from emu_jax.cli import prepare_data
from emu_jax.errors import UserError

USER = {"from": "human", "value": "<image>\nWhat is this?"}
PLAIN = {"from": "human", "value": "What is two and two?"}
ANSWER = {"from": "gpt", "value": "A red square."}

GOOD = [
    {"image": "a.png", "conversations": [USER, ANSWER]},
    {"images": ["a.png"], "conversations": [USER, ANSWER]},
    {"images": "a.png", "conversations": [USER, ANSWER]},  # a string is one image, not its letters
    {"conversations": [PLAIN, ANSWER]},
    {
        "messages": [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
            {"role": "assistant", "content": "A square."},
        ],
        "images": ["a.png"],
    },
]
BAD = [
    ({"images": ["a.png", "a.png"], "conversations": [USER, ANSWER]}, "1 marks for 2 files"),
    ({"images": ["a.png"], "conversations": [PLAIN, ANSWER]}, "0 marks for 1 files"),
    ({"images": [], "conversations": [USER, ANSWER]}, "1 marks for 0 files"),
    ({"images": [7], "conversations": [USER, ANSWER]}, "holds no file name"),
    ({"image": "absent.png", "conversations": [USER, ANSWER]}, "a media file is missing"),
    ({"conversations": [PLAIN, PLAIN, ANSWER]}, "turn 1 is of the user"),
    ({"conversations": [PLAIN, ANSWER, ANSWER]}, "turn 2 is of the assistant"),
    ({"conversations": [PLAIN, {"from": "gpt", "value": "  "}]}, "a message is empty"),
    ({"conversations": [PLAIN]}, "the chat has no answer"),
    ({"conversations": [PLAIN, {"from": "robot", "value": "hi"}]}, "unknown role"),
]


def write(folder, records):
    (folder / "images").mkdir()
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (20, 20)).save(buffer, "png")
    (folder / "images" / "a.png").write_bytes(buffer.getvalue())
    (folder / "chats.json").write_text(json.dumps(records))
    return ["--source=llava", "--input", str(folder / "chats.json"), "--check"]


def test_good_rows_are_counted(tmp_path, capsys):
    prepare_data.main(write(tmp_path, GOOD))
    assert "5 good records, 4 images and videos, 1 records of text only" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.json", "images"]


def test_every_bad_row_is_named(tmp_path, capsys):
    with pytest.raises(UserError, match=f"{len(BAD)} records are bad"):
        prepare_data.main(write(tmp_path, [*GOOD, *(record for record, _ in BAD)]))
    out = capsys.readouterr().out
    for index, (_, reason) in enumerate(BAD, start=len(GOOD)):
        line = next(line for line in out.splitlines() if f"chats.json:{index}:" in line)
        assert reason in line
    assert "5 good records" in out


def test_an_output_is_required_without_check(tmp_path):
    with pytest.raises(UserError, match="--output"):
        prepare_data.main(write(tmp_path, GOOD)[:-1])
