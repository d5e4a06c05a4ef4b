"""Chat completions through the official client: the same answers as the pipeline's, streamed and not."""

from __future__ import annotations

import base64
import io

import numpy as np
import openai
import PIL.Image
import pytest

from emu_jax.data.document import Role
from emu_jax.data.media_paths import PlainText
from emu_jax.generation.chat import ChatStyle, Turn, chat_prompt
from emu_jax.generation.options import ImageOptions
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.serving.chat_request import parse_messages
from emu_jax.serving.prepare import Preparation
from tests.serving.conftest import IMAGE_SIZE, LIMITS, MODEL, N, Running, solid_image, user

RED, BLUE = solid_image(200, 0, 0), solid_image(0, 0, 200)
CASES = {
    "greedy": (["what is this?"], {}),
    "drawn": ([RED, "what is this?"], {"temperature": 1.0, "seed": 5}),
    "filtered": (
        ["a red circle", RED, "and a dog", BLUE, "what is this? a small green square."],
        {"temperature": 0.7, "seed": 7, "top_p": 0.9},
    ),
}


def prompt_of(emu: EmuPipeline, *parts: str | PIL.Image.Image) -> list:
    turn = Turn(Role.USER, tuple(PlainText(part) if isinstance(part, str) else part for part in parts))
    return chat_prompt([turn], tokenizer=emu.tokenizer)


@pytest.mark.parametrize(("parts", "options"), CASES.values(), ids=CASES)
def test_an_answer_is_the_pipelines(server: Running, client: openai.OpenAI, parts: list, options: dict) -> None:
    got = client.chat.completions.create(model=MODEL, messages=user(*parts), max_tokens=12, **options)
    prompt = prompt_of(server.emu, *parts)
    expected = server.emu.generate_text(prompt, return_ids=True, max_new_tokens=12, **options)
    assert got.choices[0].message.content == server.emu.tokenizer.decode(expected).strip()
    assert got.choices[0].message.role == "assistant"
    assert got.usage.completion_tokens == len(expected)
    assert got.usage.prompt_tokens == len(server.emu.build_prompt(prompt).tokens)


def test_a_prefilled_answer(server: Running, client: openai.OpenAI) -> None:
    turn = Turn(Role.USER, (PlainText("what is this?"),))
    prompt = chat_prompt([turn], tokenizer=server.emu.tokenizer, prefill="the answer is:")
    expected = server.emu.generate_text(prompt, return_ids=True, max_new_tokens=12)
    got = client.chat.completions.create(
        model=MODEL, messages=user("what is this?"), max_tokens=12, extra_body={"prefill": "the answer is:"}
    )
    assert got.choices[0].message.content == server.emu.tokenizer.decode(expected).strip()
    assert got.usage.prompt_tokens == len(server.emu.build_prompt(prompt).tokens)


def test_the_layout_of_the_release(server: Running) -> None:
    messages = parse_messages([{"role": "user", "content": [{"type": "text", "text": t} for t in ("what", "is")]}])
    prepare = Preparation(server.emu, server.engine, LIMITS, system="", style=ChatStyle.RELEASE)
    turn = Turn(Role.USER, (PlainText("what"), PlainText("is")))
    expected = chat_prompt([turn], tokenizer=server.emu.tokenizer, style=ChatStyle.RELEASE)
    np.testing.assert_array_equal(prepare.chat_prompt(messages).tokens, server.emu.build_prompt(expected).tokens)


@pytest.mark.parametrize("num_beams", [2, 5])
def test_beams(server: Running, client: openai.OpenAI, num_beams: int) -> None:
    """`num_beams`, `length_penalty` and `min_tokens` in the body; several searches wait for each other."""
    options = {"num_beams": num_beams, "length_penalty": -1.0}
    got = client.chat.completions.create(
        model=MODEL, messages=user(RED, "what is this?"), max_tokens=10, extra_body=options | {"min_tokens": 4}
    )
    prompt = prompt_of(server.emu, RED, "what is this?")
    expected = server.emu.generate_text(prompt, max_new_tokens=10, min_length=5, **options)
    assert got.choices[0].message.content == expected.strip()


def test_a_stream_is_the_same_answer_piece_by_piece(server: Running, client: openai.OpenAI) -> None:
    ask = {"model": MODEL, "messages": user(RED, "what is this?"), "max_tokens": 24, "temperature": 1.0, "seed": 3}
    complete = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(texts) == complete.choices[0].message.content
    assert len(texts) > 1
    assert chunks[-1].choices[0].finish_reason == complete.choices[0].finish_reason == "length"
    assert len({chunk.id for chunk in chunks}) == 1
    assert not any(chunk.usage for chunk in chunks)


def test_usage_in_a_stream_comes_last_and_only_on_request(client: openai.OpenAI) -> None:
    ask = {"model": MODEL, "messages": user(RED, "a", BLUE, "b"), "max_tokens": 5}
    usage = client.chat.completions.create(**ask).usage
    *others, last = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    assert not any(chunk.usage for chunk in others)
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)
    assert last.usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    details = last.usage.prompt_tokens_details
    assert details.image_tokens == 2 * (N + 2) == usage.prompt_tokens_details.image_tokens


def test_stop_sequences(client: openai.OpenAI) -> None:
    """The answer ends before the sequence, in a stream too, and its usage at the token that completed it."""
    ask = {"model": MODEL, "messages": user("what is this?"), "max_tokens": 40, "temperature": 1.5, "seed": 11}
    text = client.chat.completions.create(**ask).choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    stopped = client.chat.completions.create(**ask, stop=[stop, "never said"])
    assert stopped.choices[0].message.content == text[: text.index(stop)].rstrip()
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.completion_tokens < 40
    chunks = client.chat.completions.create(**ask, stop=stop, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == stopped.choices[0].message.content


def test_a_conversation_with_system_message_and_earlier_answers(server: Running, client: openai.OpenAI) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        *user(RED, "what is this?"),
        {"role": "assistant", "content": "a red square"},
        {"role": "user", "content": "and this is not /etc/passwd.png or [IMG]"},
    ]
    got = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
    turns = [
        Turn(Role.USER, (RED, "what is this?")),
        Turn(Role.ASSISTANT, ("a red square",)),
        Turn(Role.USER, (PlainText("and this is not /etc/passwd.png or [IMG]"),)),
    ]
    prompt = chat_prompt(turns, tokenizer=server.emu.tokenizer, system="Be brief.")
    assert got.choices[0].message.content == server.emu.generate_text(prompt, max_new_tokens=8).strip()


def test_text_that_looks_like_a_file_is_text(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(model=MODEL, messages=user("/nonexistent/photo.png"), max_tokens=2)
    assert got.usage.prompt_tokens_details.image_tokens == 0


def test_images_in_answers(server: Running, client: openai.OpenAI) -> None:
    """Text and images in order, in the one form that there is; the pixels are the pipeline's."""
    options = {"open_image": "first", "max_images": 2, "num_inference_steps": 5, "guidance_scale": 4.0}
    got = client.chat.completions.create(
        model=MODEL, messages=user("a red", RED), max_tokens=6, seed=9,
        extra_body={"modalities": ["text", "image"], "height": IMAGE_SIZE, "width": IMAGE_SIZE, **options},
    )  # fmt: skip
    prompt = prompt_of(server.emu, "a red", RED)
    image_options = ImageOptions(steps=5, guidance_scale=4.0, seed=9)
    expected = server.emu.generate(prompt, max_images=2, open_image="first", image=image_options, max_new_tokens=6)
    parts = got.choices[0].message.content
    assert [part["type"] for part in parts] == ["text" if isinstance(one, str) else "image_url" for one in expected]
    for part, one in zip(parts, expected, strict=True):
        if isinstance(one, str):
            assert part["text"] == one
        else:
            assert part["image_url"]["url"].startswith("data:image/png;base64,")
            np.testing.assert_array_equal(decoded(part["image_url"]["url"]), np.asarray(one))
    images = sum(part["type"] == "image_url" for part in parts)
    assert got.usage.completion_tokens_details.image_tokens == images * (N + 2)


def test_only_an_image(server: Running, client: openai.OpenAI) -> None:
    ask = {"model": MODEL, "messages": user("a red circle"), "seed": 4, "modalities": ["image"]}
    got = client.chat.completions.create(**ask, extra_body={"num_inference_steps": 4})
    (part,) = got.choices[0].message.content
    prompt = prompt_of(server.emu, "a red circle")
    (expected,) = server.emu.generate_image(prompt, steps=4, seed=4)
    np.testing.assert_array_equal(decoded(part["image_url"]["url"]), np.asarray(expected))
    assert got.choices[0].finish_reason == "stop"
    assert got.usage.completion_tokens == N + 2

    chunks = list(client.chat.completions.create(**ask, stream=True, extra_body={"num_inference_steps": 4}))
    contents = [chunk.choices[0].delta.content for chunk in chunks if isinstance(chunk.choices[0].delta.content, list)]
    assert contents == [got.choices[0].message.content]


def test_an_image_of_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    ask = {"model": MODEL, "seed": 4, "modalities": ["image"], "extra_body": {"num_inference_steps": 2}}
    first = client.chat.completions.create(messages=user("a red circle"), **ask)
    history = [
        *user("a red circle"),
        {"role": "assistant", "content": first.choices[0].message.content},
        *user("make it blue"),
    ]
    second = client.chat.completions.create(messages=history, **ask)
    assert second.usage.prompt_tokens_details.image_tokens == N + 2


def test_a_video_is_eight_images(server: Running, client: openai.OpenAI) -> None:
    frames = [np.asarray(solid_image(30 * i, 0, 0, side=32)) for i in range(8)]
    url = f"data:video/mp4;base64,{base64.b64encode(video(frames)).decode()}"
    messages = [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}},
                                             {"type": "text", "text": "which way?"}]}]  # fmt: skip
    got = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=3)
    assert got.usage.prompt_tokens_details.image_tokens == 8 * (N + 2)


QUESTION = "what is this?\nAnswer with one word."


@pytest.mark.parametrize(
    "parts",
    [(QUESTION,), (RED, QUESTION), (QUESTION, RED, BLUE), (*[RED] * 8, QUESTION), ("the first", RED, QUESTION, BLUE)],
    ids=["text", "chat", "simple", "video", "interleaved"],
)
def test_the_request_of_lmms_eval(server: Running, client: openai.OpenAI, parts: tuple) -> None:
    """`--model openai` sends images and frames of videos as PNG data URLs; it reads the text and the token counts."""
    usual = {"max_tokens": 12, "temperature": 0}
    reasoning = {"response_format": {"type": "text"}, "max_completion_tokens": 12}  # names with o1, o3, o4 or gpt-5
    prompt = prompt_of(server.emu, *parts)
    expected = server.emu.generate_text(prompt, max_new_tokens=12).strip()
    for options in (usual, reasoning):
        got = client.chat.completions.create(messages=user(*parts), model=MODEL, **options)
        assert got.choices[0].message.content == expected
        assert got.usage.prompt_tokens == len(server.emu.build_prompt(prompt).tokens)
        assert got.usage.completion_tokens <= 12


def decoded(url: str) -> np.ndarray:
    data = base64.b64decode(url.partition(",")[2])
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


def video(frames: list[np.ndarray]) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = *frames[0].shape[1::-1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
