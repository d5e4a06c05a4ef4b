"""Chats in their published layouts."""

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
