"""Clients that leave, wait, lack a key or come from a web page; time limits and the queue."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import openai
import pytest

from emu_jax.data.document import Role
from emu_jax.generation.chat import Turn, chat_prompt
from emu_jax.generation.pipeline import EmuPipeline
from tests.serving.conftest import CONTEXT, ENGINE, MODEL, Running, another_port, running, solid_image, user, wait_until

LONG = {"model": MODEL, "messages": user("a red circle on a blue ground"), "max_tokens": 60}
ORIGIN = {"origin": "http://page.example"}
SLOW_IMAGE = {"model": MODEL, "messages": user("a"), "modalities": ["image"], "num_inference_steps": 100}


@contextlib.contextmanager
def raw_request(server: Running, body: dict) -> Iterator[socket.socket]:
    """A request on a bare socket, which can be cut off without any goodbye."""
    host, port = server.url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + content)
        yield connection


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("body", [LONG, LONG | {"stream": True}, SLOW_IMAGE], ids=["plain", "stream", "image"])
def test_a_client_that_leaves_frees_its_slot_within_a_second(server: Running, body: dict) -> None:
    aborted = server.metric("emu_aborted_requests_total")
    with raw_request(server, body) as connection:
        wait_until(lambda: server.metric("emu_slots_used") == 1 or server.engine.in_flight == 1, seconds=10)
        if body.get("stream"):
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert wait_until(lambda: server.engine.in_flight == 0, seconds=10) < 1
    assert server.metric("emu_slots_used") == 0
    assert server.metric("emu_aborted_requests_total") == aborted + 1


def test_a_client_that_leaves_before_its_body_is_complete(
    server: Running, caplog: pytest.LogCaptureFixture, http: httpx.Client
) -> None:
    gone = {"route": "/v1/chat/completions", "status": "499"}
    before = server.metric("emu_requests_total", **gone)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{")
        time.sleep(0.1)
    wait_until(lambda: server.metric("emu_requests_total", **gone) == before + 1, seconds=10)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.usefixtures("slow")
def test_a_client_that_leaves_the_queue(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(ENGINE.slots + 2):
            stack.enter_context(raw_request(server, LONG))
        wait_until(lambda: server.engine.in_flight == ENGINE.slots + 2, seconds=10)
        assert server.metric("emu_queue_requests") > 0
    assert wait_until(lambda: server.engine.in_flight == 0, seconds=10) < 1


@pytest.mark.usefixtures("slow")
def test_the_official_client_can_close_a_stream(server: Running) -> None:
    stream = server.client().chat.completions.create(**LONG, stream=True)
    next(iter(stream))
    stream.close()
    assert wait_until(lambda: server.engine.in_flight == 0, seconds=10) < 1


@pytest.mark.usefixtures("slow")
def test_an_aborted_turn_is_not_reused_and_a_complete_one_is(server: Running) -> None:
    body = LONG | {"messages": user("this is the first image of a dog and what is this? " * 2), "max_tokens": 30}

    def reused() -> int:
        got = server.client().chat.completions.create(**body | {"max_tokens": 1})
        return got.usage.prompt_tokens_details.cached_tokens

    aborted = server.metric("emu_aborted_requests_total")
    with raw_request(server, body | {"stream": True}) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    wait_until(lambda: server.engine.in_flight == 0, seconds=10)
    assert server.metric("emu_aborted_requests_total") == aborted + 1
    assert reused() == 0
    assert reused() >= ENGINE.prefill_chunk


def test_a_reused_prefix_prefills_only_the_rest_and_gives_the_same(server: Running) -> None:
    """The next turn of a conversation finds the complete chunks of the one before, its images included."""
    client = server.client()
    images = solid_image(0, 90, 0), solid_image(0, 0, 90)
    texts = "look: ", "what is this? a small green square", "and a dog?"
    first = user(texts[0], images[0], texts[1], images[1])
    ask = lambda messages: client.chat.completions.create(model=MODEL, messages=messages, max_tokens=6)
    encoded = server.metric("emu_encoded_images_total")
    answer = ask(first).choices[0].message.content
    assert server.metric("emu_encoded_images_total") == encoded + 2
    prefilled = server.metric("emu_prefilled_tokens_total")
    got = ask([*first, {"role": "assistant", "content": answer}, *user(texts[2])])
    reused = got.usage.prompt_tokens_details.cached_tokens
    assert reused >= 2 * ENGINE.prefill_chunk
    assert reused % ENGINE.prefill_chunk == 0
    assert server.metric("emu_prefilled_tokens_total") - prefilled == got.usage.prompt_tokens - 1 - reused
    turns = [
        Turn(Role.USER, (texts[0], images[0], texts[1], images[1])),
        Turn(Role.ASSISTANT, (answer,)),
        Turn(Role.USER, (texts[2],)),
    ]
    prompt = chat_prompt(turns, tokenizer=server.emu.tokenizer)
    assert got.choices[0].message.content == server.emu.generate_text(prompt, max_new_tokens=6).strip()


@pytest.mark.usefixtures("slow")
def test_a_full_queue_refuses_with_429(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, limit = server.engine, 3
    monkeypatch.setattr(engine, "config", dataclasses.replace(engine.config, max_queue=limit))
    with contextlib.ExitStack() as stack:
        for _ in range(ENGINE.slots + limit):
            stack.enter_context(raw_request(server, LONG))
        wait_until(lambda: engine.in_flight == ENGINE.slots + limit, seconds=10)
        with pytest.raises(openai.RateLimitError) as refused:
            server.client().chat.completions.create(**LONG, extra_headers=ORIGIN)
    headers = refused.value.response.headers
    assert int(headers["retry-after"]) >= 1
    assert headers["access-control-allow-origin"] == "*"
    assert "retry-after" in headers["access-control-expose-headers"]
    assert refused.value.code == "queue_full"


@pytest.mark.usefixtures("slow")
def test_thirty_two_at_once_are_queued_not_refused(server: Running) -> None:
    """Harnesses send 32 requests at once, and score a refused one as a wrong answer."""
    client = server.client()
    ask = lambda i: client.chat.completions.create(model=MODEL, messages=user(f"a {i}"), max_tokens=3)
    with ThreadPoolExecutor(32) as pool:
        assert all(got.usage.completion_tokens for got in pool.map(ask, range(32)))


@pytest.mark.usefixtures("slow")
def test_the_time_limit(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request past its limit ends with 504, in a stream with an error event; its slot is free."""
    engine = server.engine
    monkeypatch.setattr(engine, "config", dataclasses.replace(engine.config, timeout=0.3))
    with pytest.raises(openai.APIStatusError) as late:
        server.client().chat.completions.create(
            model=MODEL, messages=user("a"), modalities=["image"], extra_body={"num_inference_steps": 100}
        )
    assert late.value.status_code == 504
    with pytest.raises(openai.APIError, match="longer than"):
        list(server.client().chat.completions.create(**LONG | {"max_tokens": 80}, stream=True))
    assert engine.in_flight == 0


def test_keys(server: Running) -> None:
    """Only requests with a key are served; probes and scrapers need none; CORS is answered before keys are checked."""
    with another_port(server, keys=("first-key", "second-key")) as guarded:
        for key in ("first-key", "second-key"):
            client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key)
            assert client.chat.completions.create(model=MODEL, messages=user("a"), max_tokens=1).choices
        with pytest.raises(openai.AuthenticationError) as refused:
            openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="third-key").models.list()
        assert refused.value.code == "invalid_api_key"
        with httpx.Client(base_url=guarded.url, headers=ORIGIN) as http:
            assert http.get("/health").status_code == http.get("/metrics").status_code == 200
            refused = http.post("/tokenize", json={"prompt": "a"})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == "*"
            asked = {"access-control-request-method": "POST", "access-control-request-headers": "x-stainless-os"}
            preflight = http.options("/v1/chat/completions", headers=asked)
            assert preflight.status_code == 200
            assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]


def test_cors_on_answers_and_errors(http: httpx.Client) -> None:
    for status, got in {
        200: http.get("/v1/models", headers=ORIGIN),
        400: http.post("/v1/chat/completions", content=b"{", headers=ORIGIN),
        404: http.get("/nothing", headers=ORIGIN),
        405: http.get("/v1/chat/completions", headers=ORIGIN),
        413: http.post("/v1/chat/completions", content=b" " * 2**21, headers=ORIGIN),
    }.items():
        assert got.status_code == status
        assert got.headers["access-control-allow-origin"] == "*", status


def test_health_is_503_until_every_shape_is_compiled(emu: EmuPipeline) -> None:
    with running(emu, dataclasses.replace(ENGINE, slots=2), start=False) as starting:
        with httpx.Client(base_url=starting.url) as http:
            assert http.get("/health").status_code == 503
            refused = http.post("/v1/chat/completions", json=LONG)
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert http.get("/v1/models").status_code == 200
        starting.engine.start()


def test_tokenize(server: Running, http: httpx.Client) -> None:
    prompt = "a red circle"
    got = http.post("/tokenize", json={"model": MODEL, "prompt": prompt}).json()
    assert got["tokens"] == server.emu.build_prompt(prompt).tokens.tolist()
    assert got["count"] == len(got["tokens"])
    assert got["max_model_len"] == CONTEXT
    messages = user("a", solid_image(9, 9, 9))
    usage = server.client().chat.completions.create(model=MODEL, messages=messages, max_tokens=1).usage
    assert http.post("/tokenize", json={"messages": messages}).json()["count"] == usage.prompt_tokens
    assert http.post("/tokenize", json={"model": MODEL}).status_code == 400


def test_metrics(server: Running, http: httpx.Client) -> None:
    ask = {"model": MODEL, "messages": user("a", solid_image(9, 9, 9)), "max_tokens": 5}
    before = server.metric("emu_requests_total", route="/v1/chat/completions", status="200")
    tokens = server.metric("emu_generated_tokens_total")
    usage = server.client().chat.completions.create(**ask).usage
    page = http.get("/metrics").text
    for name in (
        "requests_total", "queue_requests", "in_flight_requests", "slots", "slots_used", "generated_tokens_total",
        "generated_images_total", "time_to_first_token_seconds_bucket", "time_per_token_seconds_bucket",
    ):  # fmt: skip
        assert f"\nemu_{name}" in page, name
    assert server.metric("emu_requests_total", route="/v1/chat/completions", status="200") == before + 1
    assert server.metric("emu_generated_tokens_total") == tokens + usage.completion_tokens
