"""Bad input gets one 4xx that names the field, and the server goes on."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import socket
import struct
import zlib

import httpx2 as httpx
import hypothesis
import hypothesis.strategies as st
import openai
import pytest

from tests.serving.conftest import CONTEXT, LIMITS, MODEL, N, Running, another_port, solid_image, user

RED = solid_image(200, 0, 0)


def ask(http: httpx.Client, **body: object) -> httpx.Response:
    return http.post("/v1/chat/completions", json={"model": MODEL, "messages": user("a"), "max_tokens": 2} | body)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -3}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "8"}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"top_k": 2**40}, "top_k"),
        ({"temperature": 10**400}, "temperature"),
        ({"max_tokens": 10**400}, "max_tokens"),
        ({"seed": -(10**400)}, "seed"),
        ({"num_beams": 6}, "num_beams"),
        ({"num_beam": 3}, "num_beam"),
        ({"num_beams": 2, "temperature": 1}, "num_beams"),
        ({"length_penalty": 11}, "length_penalty"),
        ({"min_tokens": 2**31}, "min_tokens"),
        ({"n": 2}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"modalities": ["text", "image"], "num_beams": 2}, "num_beams"),
        ({"modalities": ["image"], "num_inference_steps": 0}, "num_inference_steps"),
        ({"modalities": ["image"], "num_inference_steps": 101}, "num_inference_steps"),
        ({"modalities": ["image"], "height": 512, "width": 512}, "size"),
        ({"modalities": ["image"], "height": 10**9}, "size"),
        ({"open_image": "never"}, "open_image"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": {}, "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages[0].role"),
        ({"messages": [*user("a"), {"role": "system", "content": "b"}]}, "messages[1].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url"),
    ],
)
def test_a_wrong_field_is_named(http: httpx.Client, body: dict, field: str) -> None:
    got = ask(http, **body)
    assert got.status_code == 400, got.text
    error = got.json()["error"]
    assert error["param"] == field
    assert error["type"] == "invalid_request_error"
    assert field in error["message"]


def test_what_is_no_request(http: httpx.Client) -> None:
    post = lambda body: http.post("/v1/chat/completions", content=body)
    for body in (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"messages": "\\ud800"}', b"9" * 5000):
        assert post(body).status_code == 400, body[:20]
    assert http.get("/v1/chat/completions").status_code == 405
    assert http.post("/v1/completion", json={}).status_code == 404
    assert "error" in http.get("/nothing").json()


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt", messages=user("a"))
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_overflow_says_by_how_much(client: openai.OpenAI) -> None:
    used = client.chat.completions.create(model=MODEL, messages=user("a"), max_tokens=1).usage.prompt_tokens
    client.chat.completions.create(model=MODEL, messages=user("a"), max_tokens=CONTEXT - used)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=user("a"), max_tokens=CONTEXT - used + 7)
    assert refused.value.code == "context_length_exceeded"
    assert " 7 too many" in str(refused.value)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=MODEL, messages=user("a"), max_tokens=CONTEXT - used - N - 2 + 1, modalities=["text", "image"]
        )
    assert " 1 too many" in str(refused.value)


@pytest.mark.parametrize(
    ("url", "status", "word"),
    [
        ("http://example.com/a.png", 400, "only data URLs"),
        ("file:///etc/passwd", 400, "only data URLs"),
        ("data:image/png;base64", 400, "not a data URL"),
        ("data:image/png,abc", 400, "not a data URL"),
        ("data:text/plain;base64,aGk=", 400, "text/plain"),
        ("data:image/png;base64,@@@@", 400, "base64"),
        ("data:image/png;base64,aGVsbG8=", 400, "not an image"),
        ("data:image/png;base64,", 400, "not an image"),
        ("data:image/png;base64," + "A" * 400_000, 413, "bytes"),
    ],
)
def test_bad_urls(http: httpx.Client, url: str, status: int, word: str) -> None:
    got = ask(http, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    assert got.status_code == status, got.text
    assert word in got.json()["error"]["message"]
    assert got.json()["error"]["param"] == "messages[0].content[0].image_url.url"


def test_private_addresses_are_refused_on_an_allowed_host(server: Running) -> None:
    """localhost is allowed by name, and its address is not public; the connection is never made."""
    part = lambda url: [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    limits = dataclasses.replace(LIMITS, url_hosts=("LocalHost", "127.0.0.1", "::1"))
    with socket.socket() as private, another_port(server, limits=limits) as allowing:
        private.bind(("127.0.0.1", 0))
        private.listen()
        private.settimeout(0)
        port = private.getsockname()[1]
        for host in ("localhost", "127.0.0.1", "[::1]"):
            with pytest.raises(openai.BadRequestError) as refused:
                allowing.client().chat.completions.create(model=MODEL, messages=part(f"http://{host}:{port}/a.png"))
            assert "not public" in str(refused.value)
            assert refused.value.param == "messages[0].content[0].image_url.url"
        with pytest.raises(openai.BadRequestError, match=r"example\.com are not accepted"):
            allowing.client().chat.completions.create(model=MODEL, messages=part("http://example.com/a.png"))
        with pytest.raises(BlockingIOError):
            private.accept()


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that promises side x side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_broken_and_oversized_images_end_nothing(http: httpx.Client) -> None:
    whole = io.BytesIO()
    RED.save(whole, "PNG")
    url = lambda data: f"data:image/png;base64,{base64.b64encode(data).decode()}"
    part = lambda data: [{"role": "user", "content": [{"type": "image_url", "image_url": url(data)}]}]
    for data, status in ((whole.getvalue()[:60], 400), (bomb(1200), 413), (bomb(60_000), 413), (bomb(100), 400)):
        assert ask(http, messages=part(data)).status_code == status
    assert ask(http).status_code == 200


def test_too_many_media_and_too_large_bodies(http: httpx.Client) -> None:
    assert ask(http, messages=user(*[RED] * (LIMITS.max_media + 1))).status_code == 400
    got = ask(http, messages=user("a" * LIMITS.max_body_bytes))
    assert got.status_code == 413

    def endless():  # no content-length
        for _ in range(40):
            yield b" " * 2**16

    assert http.post("/v1/chat/completions", content=endless()).status_code == 413


def test_bad_videos(http: httpx.Client) -> None:
    for data in (b"", b"no video", b"\0\0\0\x18ftypmp42" + b"\0" * 100):
        url = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
        got = ask(http, messages=[{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}])
        assert got.status_code == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["messages", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream", "stream_options", "n",
     "modalities", "num_beams", "min_tokens", "length_penalty", "repetition_penalty", "height", "model", "tools"]
)  # fmt: skip


@hypothesis.settings(
    max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(body=st.dictionaries(NAMES, JSON, max_size=3))
def test_garbage_is_never_the_servers_failure(server: Running, http: httpx.Client, body: dict) -> None:
    content = json.dumps({"max_tokens": 1, "messages": user("a")} | body)  # NaN and lone surrogates too
    got = http.post("/v1/chat/completions", content=content)
    assert got.status_code in (200, 400, 404), got.text
    assert server.engine.status.value == "ready"
