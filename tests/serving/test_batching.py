"""Continuous batching: answers do not depend on their neighbors, nothing compiles, nobody is held up."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import PIL.Image
import pytest

from tests.serving.conftest import CONTEXT, ENGINE, MODEL, N, Running, solid_image, user

WORDS = ["a", "red", "circle", "on", "blue", "ground", "what", "is", "this", "dog", "small", "green", "square"]


def request(number: int) -> dict:
    """One of many different requests: lengths, images, draws, beams, images in the answer."""
    rng = random.Random(number)
    room = CONTEXT - 30
    parts: list[str | PIL.Image.Image] = []
    for _ in range(rng.randint(0, 3)):
        parts.append(solid_image(*(rng.randrange(256) for _ in range(3)), side=rng.randint(20, 60)))
        room -= N + 2
    parts.append(" ".join(rng.choices(WORDS, k=rng.randint(1, room // 5))))
    body: dict = {"model": MODEL, "messages": user(*parts), "max_tokens": rng.randint(1, 9), "seed": number}
    if number % 5 == 1:
        body |= {"modalities": ["image"], "extra_body": {"num_inference_steps": rng.randint(2, 12)}}
    elif number % 5 == 2:
        body |= {"extra_body": {"num_beams": rng.randint(2, 5), "length_penalty": rng.choice([-1.0, 0.0, 1.0])}}
    elif number % 5 == 3:
        body |= {"temperature": 1.0, "top_p": rng.choice([0.5, 1.0])}
    elif number % 5 == 4:
        extra = {"open_image": "first", "num_inference_steps": rng.randint(2, 8), "repetition_penalty": 1.2}
        body |= {"modalities": ["text", "image"], "extra_body": extra}
    return body


def answer(client: openai.OpenAI, number: int) -> object:
    return client.chat.completions.create(**request(number)).choices[0].message.content


def test_answers_together_are_the_answers_alone_and_nothing_compiles(server: Running, client: openai.OpenAI) -> None:
    """100 requests of different lengths and image counts, one at a time and then 12 at once."""
    compiled = server.metric("emu_compilations_total")
    alone = [answer(client, number) for number in range(100)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda number: answer(client, number), range(100)))
    assert together == alone
    assert server.metric("emu_compilations_total") == compiled
    assert len({str(one) for one in alone}) > 60  # not the same answer again and again


@pytest.fixture
def calls(server: Running) -> Iterator[list[str]]:
    """The programs as they are run, in order."""
    names: list[str] = []
    text, image = server.engine._device, server.engine._image_devices[ENGINE.image_sizes[0]]
    run_text, run_image = text.run, image._run
    text.run = lambda name, *rest: (names.append(name), run_text(name, *rest))[1]
    image._run = lambda name, *rest: (names.append(name), run_image(name, *rest))[1]
    yield names
    del text.run, image._run


def start(server: Running, body: dict) -> threading.Thread:
    """A request in the background whose stream has begun."""
    begun = threading.Event()

    def run() -> None:
        for _ in server.client().chat.completions.create(**body, stream=True):
            begun.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(30)
    return thread


@pytest.mark.usefixtures("slow")
def test_a_long_prompt_does_not_hold_up_running_answers(server: Running, calls: list[str]) -> None:
    thread = start(server, {"model": MODEL, "messages": user("a"), "max_tokens": 100, "seed": 1, "temperature": 2.0})
    calls.clear()
    long = user("this is the first image of a dog and a small green square " * 2)
    got = server.client().chat.completions.create(model=MODEL, messages=long, max_tokens=1)
    thread.join()
    chunks = [i for i, name in enumerate(calls) if name.startswith("prefill")]
    assert len(chunks) >= got.usage.prompt_tokens // ENGINE.prefill_chunk > 3
    between = calls[chunks[0] : chunks[-1]]
    assert between.count("decode") >= len(chunks) // 2
    assert "encode" not in calls


@pytest.mark.usefixtures("slow")
def test_images_and_text_share_the_device(server: Running, calls: list[str]) -> None:
    """While an image is sampled (100 steps), a running answer goes on, and the other way round."""
    image = {"model": MODEL, "messages": user("a"), "modalities": ["image"], "seed": 1}
    done = threading.Event()

    def paint() -> None:
        server.client().chat.completions.create(**image, extra_body={"num_inference_steps": 100})
        done.set()

    thread = start(server, {"model": MODEL, "messages": user("a"), "max_tokens": 100, "seed": 1, "temperature": 2.0})
    painting = threading.Thread(target=paint)
    painting.start()
    thread.join()
    painting.join()
    samples = [i for i, name in enumerate(calls) if name == "sample"]
    decodes = [i for i, name in enumerate(calls) if name == "decode" and samples[0] < i < samples[-1]]
    assert done.is_set()
    assert len(samples) >= 101 // ENGINE.sampler_calls
    assert len(decodes) > 5


def test_many_images_are_encoded_in_one_fixed_shape(server: Running, calls: list[str]) -> None:
    """9 images fill two batches of 4 and a part of a third."""
    parts = [solid_image(20 * i, 0, 0) for i in range(8)]
    server.client().chat.completions.create(model=MODEL, messages=user(*parts, "what?"), max_tokens=1)
    assert calls.count("encode") == 2


def test_a_failing_program_fails_its_requests_and_the_server_resumes(
    server: Running, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arrays of a program that fails are lost: running requests get a 500, the next ones new slots."""
    before = answer(client, 7)
    device, run = server.engine._device, server.engine._device.run

    def fail(name: str, *rest: object) -> object:
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(device, "run", fail)
    with pytest.raises(openai.InternalServerError) as failed:
        answer(client, 7)
    assert failed.value.status_code == 500
    assert device.run == run
    assert answer(client, 7) == before
    assert server.engine.in_flight == 0
