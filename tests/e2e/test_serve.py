"""`serve` as a user runs it: readiness, SIGTERM, clients that are killed, bad options, several processes."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from emu_jax.checkpoints.model_directory import save_model
from emu_jax.convert.visual_decoder import save_visual_decoder
from emu_jax.generation.pipeline import EmuPipeline
from tests.serving.conftest import MODEL, emu, solid_image, user  # noqa: F401  (a fixture)

START_SECONDS = 240
SIZES = ("--slots", "2", "--max-beams", "2", "--prefill-chunk", "16", "--image-size", "8x8")


@pytest.fixture(scope="session")
def checkpoint(emu: EmuPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The tiny Emu as a model directory with its visual decoder."""
    folder = tmp_path_factory.mktemp("served") / MODEL
    tokenizer = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    emu.tokenizer.save(tokenizer)
    save_model(folder, emu.config, emu.params, tokenizer=tokenizer)
    save_visual_decoder(emu.visual_decoder, folder / "visual_decoder")
    return folder


@contextlib.contextmanager
def serve(root: Path, environment: dict[str, str], *words: str | Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server in its own process, and its URL once it is ready."""
    line = [sys.executable, "-m", "emu_jax", "serve", "--port", "0", *map(str, words)]
    process = subprocess.Popen(line, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        found = next(match for line in lines if (match := re.search(r"http://127\.0\.0\.1:\d+", line)))
        wait_for_health(found.group(), process)
        yield process, found.group()
    finally:
        process.kill()
        process.wait()


def wait_for_health(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health").status_code == 200:
                return
        time.sleep(0.2)
    raise AssertionError("not ready in time")


CLIENT = """
import openai, sys
stream = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none").chat.completions.create(
    model="tiny", messages=[{"role": "user", "content": "a"}], max_tokens=100, temperature=2.0, seed=1, stream=True)
for chunk in stream:
    print("chunk", flush=True)
    sys.stdin.readline()
"""


def test_a_server_outlives_killed_clients_and_drains_at_sigterm(
    root: Path, user_environment: dict[str, str], checkpoint: Path
) -> None:
    environment = user_environment | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    with serve(root, environment, "--checkpoint", checkpoint, *SIZES) as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        ask = {"model": MODEL, "messages": user("a", solid_image(9, 9, 9)), "seed": 2}
        before = client.chat.completions.create(**ask, max_tokens=4)

        killed = subprocess.Popen(
            [sys.executable, "-c", CLIENT, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert killed.stdout is not None
        assert killed.stdout.readline() == "chunk\n"
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        deadline = time.monotonic() + 1
        while "emu_in_flight_requests 0.0" not in httpx.get(f"{url}/metrics").text:
            assert time.monotonic() < deadline
        again = client.chat.completions.create(**ask, max_tokens=4)
        assert again.choices[0].message.content == before.choices[0].message.content

        answers = []
        image = ask | {"modalities": ["image"], "extra_body": {"num_inference_steps": 100}}
        threads = [
            threading.Thread(target=lambda: answers.append(client.chat.completions.create(**image))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        while "emu_in_flight_requests 4.0" not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert len(answers) == 4  # those in the queue too
        assert process.wait(timeout=20) == 0
        with pytest.raises(openai.APIConnectionError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0).models.list()


def test_two_processes_answer_as_one(
    root: Path,
    user_environment: dict[str, str],
    checkpoint: Path,
    emu: EmuPipeline,  # noqa: F811
) -> None:
    """Tensor parallelism over two processes: process 0 answers, the other repeats its device work; both end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    environment = user_environment | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COORDINATOR_ADDRESS": coordinator,
        "JAX_NUM_PROCESSES": "2",
    }
    words = ("--checkpoint", checkpoint, *SIZES, "--mesh", "data:1,fsdp:1,tensor:2")
    line = [sys.executable, "-m", "emu_jax", "serve", *map(str, words)]
    follower = subprocess.Popen(line, cwd=root, env=environment | {"JAX_PROCESS_ID": "1"})
    try:
        with serve(root, environment | {"JAX_PROCESS_ID": "0"}, *words) as (process, url):
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
            got = client.chat.completions.create(model=MODEL, messages=user("what is this?"), max_tokens=8)
            beams = client.chat.completions.create(
                model=MODEL, messages=user("what is this?"), max_tokens=6, extra_body={"num_beams": 2}
            )
            image = client.images.generate(model=MODEL, prompt="a red circle", extra_body={"steps": 3, "seed": 1})
            assert image.data[0].b64_json
            from tests.serving.test_chat import prompt_of

            prompt = prompt_of(emu, "what is this?")
            assert got.choices[0].message.content == emu.generate_text(prompt, max_new_tokens=8).strip()
            expected = emu.generate_text(prompt, max_new_tokens=6, num_beams=2).strip()
            assert beams.choices[0].message.content == expected
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        assert follower.wait(timeout=30) == 0
    finally:
        follower.kill()
        follower.wait()
