"""Load on the server: correctness under load, throughput, time to first token, and an optional soak.

    .venv/bin/python experiments/benchmarks/serving.py
    .venv/bin/python experiments/benchmarks/serving.py --sizes demo --torch .venv-parity/bin/python --soak-minutes 60

A model with random weights is served by `python -m emu_jax serve` on 127.0.0.1; threads with the official openai client
send 200 requests, a fifth of which ask for an image. Prints tables in Markdown. "Alone" is one request at a time to the
same server; "one slot" is one request at a time to a server of one slot, which computes nothing for absent requests;
"transformers" is `generate`, one request at a time, on the text requests (it makes no images). The clients
share the machine with the server.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import io
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import jax
import jax.numpy as jnp
import numpy as np
import openai
import PIL.Image
import psutil

from emu_jax.checkpoints.model_directory import boxed_shapes, save_model
from emu_jax.convert.visual_decoder import save_visual_decoder
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.diffusion.decoder import VisualDecoder
from emu_jax.models.presets import emu_tiny
from emu_jax.sharding.specs import unbox

WORDS = ("a", "red", "circle", "on", "blue", "ground", "what", "is", "this", "small", "green", "square", "of", "the")
IMAGE_STEPS = 20
SLOTS = 16
SAMPLER_ROWS = 4
LOAD = 0.6  # of the measured throughput, in the soak
VANISH, GARBAGE, KILLED = 0.10, 0.05, 0.02  # fractions of the soak's requests


@dataclasses.dataclass(frozen=True)
class Size:
    """A model to serve."""

    context: int
    unet_widths: tuple[int, ...]
    vae_widths: tuple[int, ...]


SIZES = {
    "tiny": Size(context=128, unet_widths=(16, 16), vae_widths=(16, 16)),
    "demo": Size(context=512, unet_widths=(48, 96), vae_widths=(16, 32, 32)),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One answer: its content, tokens, seconds to the first piece and to the end."""

    content: Any
    tokens: int
    first: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="tiny,demo", help="of the model: tiny, demo")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--torch", type=Path, help="a Python with torch and transformers (.venv-parity/bin/python)")
    parser.add_argument("--soak-minutes", type=float, default=0.0, help="default: no soak")
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before\n")
    for size in arguments.sizes.split(","):
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / size
            make_model(SIZES[size], folder)
            with serving(folder, slots=1, sampler_rows=1) as (_, url):
                one_slot = run_requests("one slot", url, range(arguments.requests), 1)
            with serving(folder) as (process, url):
                print(f"## {size}\n")
                rate = load(url, arguments.requests, arguments.clients, one_slot, folder, arguments.torch)
                if arguments.soak_minutes:
                    soak(url, process, minutes=arguments.soak_minutes, rate=LOAD * rate)


# ---- the model and its server


def make_model(size: Size, folder: Path) -> None:
    """Write a model directory with random weights and a visual decoder."""
    folder.mkdir(parents=True)
    tokenizer_file = folder.parent / "tokenizer.model"
    tokenizer = train_tokenizer([" ".join(WORDS)] * 8, tokenizer_file, vocab_size=400)
    config = emu_tiny(vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, max_length=size.context))
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        ones = path[-1].key == "scale"
        return jnp.ones(leaf.shape) if ones else jnp.asarray(rng.normal(scale=0.1, size=leaf.shape), jnp.float32)

    params = jax.tree_util.tree_map_with_path(draw, unbox(boxed_shapes(config)))
    save_model(folder, config, params, tokenizer=tokenizer_file)
    vae = VAEConfig(block_out_channels=size.vae_widths, layers_per_block=1, norm_num_groups=8)
    unet = UNetConfig(
        sample_size=8,
        block_out_channels=size.unet_widths,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=config.decoder.width,
        norm_num_groups=8,
    )
    save_visual_decoder(VisualDecoder.create(unet, vae), folder / "visual_decoder")


@contextlib.contextmanager
def serving(
    folder: Path, *, slots: int = SLOTS, sampler_rows: int = SAMPLER_ROWS
) -> Iterator[tuple[subprocess.Popen, str]]:
    """The server in its own process, once it is ready."""
    line = [
        sys.executable, "-m", "emu_jax", "serve", "--checkpoint", str(folder), "--port", "0",
        "--slots", str(slots), "--sampler-rows", str(sampler_rows),
    ]  # fmt: skip
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = next(m.group() for line in process.stdout if (m := re.search(r"http://127\.0\.0\.1:\d+", line)))
        started = time.monotonic()
        while httpx.get(f"{url}/health").status_code != 200:
            assert process.poll() is None, "the server ended"
            time.sleep(0.2)
        print(f"ready after {time.monotonic() - started:.0f} s of compiling", file=sys.stderr)
        yield process, url
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, "the server did not end well"
    finally:
        process.kill()


# ---- requests


def request(number: int) -> dict[str, Any]:
    """Request `number`: text after a text, or after an image; every fifth asks for an image."""
    rng = random.Random(number)
    text = " ".join(rng.choices(WORDS, k=rng.randint(2, 8)))
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if number % 3 == 0:
        content.insert(0, {"type": "image_url", "image_url": {"url": photo(rng)}})
    body: dict[str, Any] = {"model": "", "messages": [{"role": "user", "content": content}], "seed": number}
    if number % 5 == 0:
        return body | {"modalities": ["image"], "extra_body": {"num_inference_steps": IMAGE_STEPS}}
    count = rng.choice((16, 32, 48))
    return body | {"max_tokens": count, "temperature": float(number % 2), "extra_body": {"min_tokens": count}}


def photo(rng: random.Random) -> str:
    """An image as a data URL."""
    pixels = np.asarray([[[rng.randrange(256) for _ in range(3)] for _ in range(8)] for _ in range(8)], np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).resize((64, 64)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def ask(client: openai.OpenAI, model: str, number: int) -> Outcome:
    """Stream one answer to its end."""
    started = time.perf_counter()
    first, content = None, []
    tokens = 0
    body = request(number) | {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    for chunk in client.chat.completions.create(**body):
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        elif chunk.choices[0].delta.content:
            first = time.perf_counter() if first is None else first
            content.append(chunk.choices[0].delta.content)
    ended = time.perf_counter()
    joined = "".join(content) if all(isinstance(one, str) for one in content) else content
    return Outcome(joined, tokens, (first or ended) - started, ended - started)


@dataclasses.dataclass(frozen=True)
class Run:
    """The answers to some requests, and how long all of them took together."""

    name: str
    outcomes: list[Outcome]
    seconds: float

    def row(self) -> str:
        """The row of the table."""
        firsts = sorted(1000 * outcome.first for outcome in self.outcomes)
        tokens = sum(outcome.tokens for outcome in self.outcomes)
        return (
            f"| {self.name} | {self.seconds:.1f} | {len(self.outcomes) / self.seconds:.1f} | "
            f"{tokens / self.seconds:.0f} | {quantile(firsts, 0.5):.0f} | {quantile(firsts, 0.99):.0f} |"
        )


def run_requests(name: str, url: str, numbers: Sequence[int], workers: int) -> Run:
    """Send requests from that many clients."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
    model = client.models.list().data[0].id
    ask(client, model, 0)
    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        outcomes = list(pool.map(lambda number: ask(client, model, number), numbers))
    return Run(name, outcomes, time.perf_counter() - started)


def load(url: str, count: int, clients: int, one_slot: Run, folder: Path, torch: Path | None) -> float:
    """Print the load table; return requests per second of all clients together."""
    texts = [number for number in range(count) if number % 5]
    alone = run_requests("alone", url, range(count), 1)
    together = run_requests(f"{clients} clients", url, range(count), clients)
    only_text = run_requests(f"{clients} clients, text only", url, texts, clients)
    print("| | seconds | requests/s | tokens/s | first p50 ms | first p99 ms |\n|---|---:|---:|---:|---:|---:|")
    for run in (one_slot, alone, together, only_text):
        print(run.row())
    if torch is not None:
        baseline = transformers_seconds(folder, texts, torch)
        print(f"| transformers, text only | {baseline:.1f} | {len(texts) / baseline:.1f} | | | |")
        print(f"\nthroughput: {baseline / only_text.seconds:.1f} x transformers behind a queue")
    pairs = zip(alone.outcomes, together.outcomes, strict=True)
    same = sum(one.content == other.content for one, other in pairs)
    print(
        f"\nthroughput: {alone.seconds / together.seconds:.1f} x one at a time, "
        f"{one_slot.seconds / together.seconds:.1f} x one at a time with one slot; "
        f"{same} of {count} answers equal to those alone\n"
    )
    assert same == count
    return count / together.seconds


def quantile(ordered: Sequence[float], fraction: float) -> float:
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def transformers_seconds(folder: Path, numbers: Sequence[int], python: Path) -> float:
    """The time of transformers' `generate` for prompts and answers of the same lengths."""
    llama, prompts = folder.parent / "llama", folder.parent / "prompts.json"
    line = [sys.executable, "-m", "emu_jax", "export-torch", str(folder), str(llama), "--format", "huggingface"]
    subprocess.run(line, check=True, capture_output=True)
    rng, requests = random.Random(0), []
    for number in numbers:
        body = request(number)
        length = 30 + 6 * (number % 3 == 0)
        requests.append({"tokens": [rng.randrange(3, 300) for _ in range(length)], "new_tokens": body["max_tokens"]})
    prompts.write_text(json.dumps(requests))
    script = Path(__file__).with_name("serving_torch.py")
    done = subprocess.run(
        [str(python), str(script), str(llama), str(prompts)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])["seconds"]


# ---- soak


KILL_ME = """
import socket, sys
host, port, body = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
connection = socket.create_connection((host, port))
head = b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: %d\\r\\n\\r\\n"
connection.sendall(head % len(body) + body)
connection.recv(1)
print("receiving", flush=True)
connection.recv(10**9)
input()
"""


@dataclasses.dataclass
class Soak:
    """What the soak has seen. `wrong` answers differ from the first one to the same request."""

    url: str
    model: str
    counts: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(
        ("answered", "vanished", "garbage", "killed", "wrong", "failed"), 0))  # fmt: skip
    known: dict[int, Any] = dataclasses.field(default_factory=dict)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def one(self, number: int) -> None:
        """Send one request, or misbehave."""
        chance = random.Random(f"soak {number}").random()
        try:
            if chance < VANISH:
                outcome = self.vanish(number)
            elif chance < VANISH + GARBAGE:
                outcome = self.garbage(number)
            elif chance < VANISH + GARBAGE + KILLED:
                outcome = self.kill(number)
            else:
                outcome = self.answer(number % 100)
        except Exception as error:
            print(f"request {number}: {type(error).__name__}: {error}", file=sys.stderr)
            outcome = "failed"
        with self.lock:
            self.counts[outcome] += 1

    def answer(self, number: int) -> str:
        content = ask(self.client, self.model, number).content
        with self.lock:
            return "answered" if self.known.setdefault(number, content) == content else "wrong"

    def vanish(self, number: int) -> str:
        stream = self.client.chat.completions.create(**request(number) | {"model": self.model, "stream": True})
        next(iter(stream))
        stream.close()
        return "vanished"

    def garbage(self, number: int) -> str:
        body = random.Random(number).randbytes(1000)
        with httpx.Client() as client:
            status = client.post(f"{self.url}/v1/chat/completions", content=body).status_code
        return "garbage" if status == 400 else "failed"

    def kill(self, number: int) -> str:
        """A client in its own process, killed while its answer streams."""
        body = request(5 * number + 1) | {"model": self.model, "stream": True}
        body |= body.pop("extra_body")
        host, port = self.url.removeprefix("http://").split(":")
        line = [sys.executable, "-S", "-c", KILL_ME, host, port, json.dumps(body)]
        child = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
        child.wait()
        return "killed"

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=600)


def soak(url: str, process: subprocess.Popen, *, minutes: float, rate: float) -> None:
    """Send requests at `rate` per second at random times; print what became of them, and the server's memory."""
    model = openai.OpenAI(base_url=f"{url}/v1", api_key="none").models.list().data[0].id
    state, rng = Soak(url, model), random.Random(0)
    memory: list[tuple[float, float]] = []
    measured = psutil.Process(process.pid)
    started = time.monotonic()
    end, number = started + 60 * minutes, 0
    workers = threading.BoundedSemaphore(64)
    with ThreadPoolExecutor(64) as pool:
        due = started
        while (now := time.monotonic()) < end:
            if not memory or now - memory[-1][0] > max(1.0, minutes / 2):
                memory.append((now, measured.memory_info().rss / 2**20))
            if now < due:
                time.sleep(min(0.05, due - now))
                continue
            due = max(due + rng.expovariate(rate), now - 1.0)  # a machine that was busy is not made to catch up
            workers.acquire()
            pool.submit(state.one, number).add_done_callback(lambda _: workers.release())
            number += 1
    time.sleep(1.0)
    page = httpx.get(f"{url}/metrics").text
    assert "emu_in_flight_requests 0.0" in page, "requests are left in flight"
    settled = [(t, m) for t, m in memory if t > started + 6 * minutes]  # the first tenth fills caches
    slope = statistics.linear_regression(*zip(*settled, strict=True)).slope * 3600 if len(settled) > 2 else float("nan")
    counts = ", ".join(f"{count} {name}" for name, count in state.counts.items())
    print(f"soak: {minutes:g} minutes at {rate:.1f} requests/s: {number} sent: {counts}; 0 in flight at the end")
    print(f"memory: {memory[0][1]:.0f} MiB at first, {memory[-1][1]:.0f} at the end, slope {slope:+.1f} MiB/hour\n")
    assert state.counts["failed"] == state.counts["wrong"] == 0


if __name__ == "__main__":
    main()
