"""Chats in their published layouts."""

import json

import numpy as np
import pytest

from emu_jax.data.document import Text, Video
from emu_jax.data.sources import Rejected
from tests.data.sources.makers import COUNT, image_file, kinds, make_llava, read, words, write_json


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_video_chatgpt_names_videos_without_suffix(tmp_path, suffix):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / f"v_1.{suffix}").write_bytes(image_file(1))
    path = write_json(tmp_path / "v.json", [{"video_id": "v_1", "q": words(1), "a": "up"}])
    (found,) = read("videochat", path)
    assert found.segments[0] == Video(image_file(1), found.segments[0].role)
    assert kinds(found) == ["Video", words(1), "up"]


def test_a_chat_without_an_image_is_text(tmp_path):
    """LLaVA's mixture has chats without "image", or with null."""
    turns = [{"from": "human", "value": words(1)}, {"from": "gpt", "value": "yes"}]
    path = write_json(tmp_path / "l.json", [{"conversations": turns}, {"image": None, "conversations": turns}])
    assert [kinds(f) for f in read("llava", path)] == [[words(1), "yes"]] * 2


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"conversations": [{"from": "human", "value": "a"}]}, "no answer"),
        ({"conversations": []}, "no answer"),
        ({"conversations": [{"from": "narrator", "value": "a"}]}, "unknown role ('narrator')"),
        ({"conversations": [{"from": "gpt"}]}, "'value' is missing"),
        ({"conversations": [{"from": "gpt", "value": None}]}, "'value' is NoneType"),
        ({"conversations": {"from": "gpt", "value": "a"}}, "'conversations' is dict"),
        ({"image": 7, "conversations": []}, "'image' holds no file name (it is int)"),
        ({"image": ["a.png", "b.png"], "conversations": []}, "is missing"),
        ([], "a JSON object was expected"),
        (None, "a JSON object was expected"),
    ],
)
def test_invalid_chats_are_rejected_with_a_reason(tmp_path, record, reason):
    (found,) = read("llava", write_json(tmp_path / "l.json", [record]))
    assert reason in (f"{found.reason} ({found.detail})" if found.detail else found.reason)


def test_two_marks_for_one_image_are_rejected(tmp_path):
    path = make_llava(tmp_path)
    path.write_text(path.read_text().replace("<image>", "<image> and <image>", 1))
    found = read("llava", path)
    assert isinstance(found[0], Rejected)
    assert found[0].detail == "2 marks for 1 files"
    assert len([f for f in found if not isinstance(f, Rejected)]) == COUNT - 1
    assert all(isinstance(s, Text) == (i > 0) for i, s in enumerate(found[1].segments))


def turns(question="<image>\nWhat is here?", answer="A box."):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.mark.parametrize("source", ["llava", "sharegpt"])
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("good.json", ["Image", "What is here?", "A box."]),
        ("int_id.json", ["Image", "What is here?", "A box."]),
        ("prefix_images.json", ["Image", "What is here?", "A box."]),
        ("trailing.json", ["Image", "What is here?", "A box."]),
        ("images_key.json", ["Image", "Image", "Which is larger?", "The first."]),
        ("messages_key.json", ["Image", "What is here?", "A box."]),
        ("image_in_2nd.json", ["Hello", "Hi.", "What is in", "Image", "?", "A box."]),
        ("human_last.json", ["Image", "What is here?", "A box.", "And the colour?"]),
        ("gpt_first.json", ["Hi, I am a bot.", "Image", "What is here?", "A box."]),
        ("null_image.json", ["Say hello.", "Hello."]),
        ("nan_image.json", ["Say hello.", "Hello."]),
        ("empty_image.json", ["Say hello.", "Hello."]),
        ("empty_list.json", ["Say hello.", "Hello."]),
        ("text_with_mark.json", ["Write HTML with an <image> tag.", "Here: <image src=a>"]),
        ("two_marks.json", "the numbers of <image> marks and files differ"),
        ("empty_answer.json", "a message is empty"),
        ("absolute.json", "a file name is not accepted"),
        ("dotdot.json", "a file name is not accepted"),
    ],
)
def test_reported_files(cases, source, file, expected):
    (found,) = read(source, cases / "llava_json" / file)
    assert (found.reason if isinstance(found, Rejected) else kinds(found)) == expected


def test_reported_files_with_several_records(cases):
    assert [kinds(f) for f in read("llava", cases / "llava_json" / "lines.jsonl")] == [
        ["Image", "What is here?", "A box."]
    ] * 3
    broken, good = read("llava", cases / "llava_json" / "dup_key.json")
    assert broken.reason == "the JSON has an object with the same name twice"
    assert kinds(good) == ["Image", "What is here?", "A box."]


@pytest.mark.parametrize(
    "media",
    [
        {"image": "0.png"}, {"image": ["0.png"]}, {"images": ["0.png"]}, {"images": "0.png"},
        {"image": "0.png", "images": ["0.png"]}, {"images": ["0.png"], "videos": []}, {"image": "0.png", "video": None},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "messages",
    [
        {"conversations": turns()},
        {"messages": [{"role": "user", "content": "<image>What is here?"}, {"role": "assistant", "content": "A box."}]},
        {"messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is here?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A box."}]},
        ]},
    ],
)  # fmt: skip
def test_spellings_of_images_and_messages(tmp_path, media, messages):
    (tmp_path / "0.png").write_bytes(image_file(0))
    (found,) = read("llava", write_json(tmp_path / "l.json", [media | messages]))
    assert kinds(found) == ["Image", "What is here?", "A box."]


@pytest.mark.parametrize(
    ("media", "question"),
    [
        ({"video": "v.mp4"}, "<video>What?"),
        ({"video": "v.mp4"}, "<image>What?"),
        ({"videos": ["v.mp4"]}, "<video>What?"),
    ],
)
def test_spellings_of_videos(tmp_path, media, question):
    (tmp_path / "v.mp4").write_bytes(b"video")
    (found,) = read("llava", write_json(tmp_path / "l.json", [media | {"conversations": turns(question)}]))
    assert kinds(found) == ["Video", "What?", "A box."]


def test_images_and_videos_are_matched_by_their_marks(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"video")
    (tmp_path / "0.png").write_bytes(image_file(0))
    record = {"images": ["0.png"], "videos": ["v.mp4"], "conversations": turns("<video> or <image>?")}
    (found,) = read("llava", write_json(tmp_path / "l.json", [record]))
    assert kinds(found) == ["Video", "or", "Image", "?", "A box."]


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        ({"image": "0.png", "conversations": turns("no mark")}, "0 marks for 1 files"),
        ({"images": ["0.png", "0.png"], "conversations": turns()}, "1 marks for 2 files"),
        ({"images": [], "conversations": turns()}, "1 marks for 0 files"),
        ({"conversations": turns()}, "1 marks for 0 files"),
        ({"image": "0.png", "conversations": turns(answer="see <image>")}, "2 marks for 1 files"),
    ],
)
def test_numbers_of_marks_and_files_must_be_equal(tmp_path, record, detail):
    """Also in a record without media, if another record of the file has some."""
    (tmp_path / "0.png").write_bytes(image_file(0))
    good = {"image": "0.png", "conversations": turns()}
    found, rest = read("llava", write_json(tmp_path / "l.json", [record, good]))
    assert found.detail == detail
    assert kinds(rest) == ["Image", "What is here?", "A box."]


def test_different_files_under_two_spellings_are_ambiguous(tmp_path):
    record = {"image": "0.png", "images": ["1.png"], "conversations": turns()}
    (found,) = read("llava", write_json(tmp_path / "l.json", [record]))
    assert found.reason == "two fields name different files"


def test_llama_factory_alpaca(tmp_path):
    (tmp_path / "0.png").write_bytes(image_file(0))
    record = {
        "instruction": "<image>What", "input": "is here?", "output": "A box.", "images": ["0.png"],
        "system": "Be brief.", "history": [["Hello", "Hi."]],
    }  # fmt: skip
    (found,) = read("alpaca", write_json(tmp_path / "a.json", [record]))
    assert kinds(found) == ["Be brief.", "Hello", "Hi.", "Image", "What\nis here?", "A box."]


def test_any_value_in_a_chat_is_at_most_a_reject(tmp_path):
    """One change of one value to any other JSON type never ends the file."""
    values = [None, True, 3, 2.5, float("nan"), "text", ["gpt"], {"a": 1}, [], {}, [None], [["a"]]]
    (tmp_path / "0.png").write_bytes(image_file(0))
    for source, record in {
        "llava": {"image": "0.png", "conversations": turns(), "system": "a"},
        "alpaca": {"instruction": "a", "input": "b", "output": "c", "history": [["a", "b"]]},
        "videochat": {"video": "0.png", "QA": [{"i": "a", "q": "b", "a": "c"}]},
    }.items():
        changed = [json.loads(json.dumps(record)) for _ in range(200)]
        rng = np.random.default_rng(0)
        for item in changed:
            node, key = item, rng.choice(sorted(item))
            while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7:
                node = node[key]
                key = rng.choice(sorted(node)) if isinstance(node, dict) else int(rng.integers(len(node)))
            node[key] = values[rng.integers(len(values))]
        assert len(read(source, write_json(tmp_path / "l.json", changed))) == 200
