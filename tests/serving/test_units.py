"""The parts that need no server: fair time, slots and their prefixes, text from ids, counts, addresses."""

from __future__ import annotations

import dataclasses
import http.server
import ipaddress
import threading
from collections.abc import Iterator

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.prompt import Prompt
from emu_jax.serving.answers import TextStream
from emu_jax.serving.build import create_device, create_engine
from emu_jax.serving.chat_request import parse_chat
from emu_jax.serving.config import EngineConfig, Limits
from emu_jax.serving.errors import ApiError
from emu_jax.serving.fetch import fetch, is_public
from emu_jax.serving.image_request import parse_image_request
from emu_jax.serving.prepare import Preparation
from emu_jax.serving.scheduler import FairClock, Work
from emu_jax.serving.slots import Slots, image_digest, prefix_chain
from emu_jax.serving.transport import read_keys
from emu_jax.serving.usage import answer_usage, prompt_usage
from tests.serving.conftest import ENGINE, MODEL, user


def test_each_kind_of_work_gets_the_same_time() -> None:
    clock, used = FairClock(), dict.fromkeys(Work, 0.0)
    cost = {Work.PREFILL: 3.0, Work.DECODE: 1.0, Work.BEAMS: 0.5, Work.IMAGES: 7.0}
    for _ in range(4000):
        work = clock.choose(set(Work))
        assert work is not None
        clock.charge(work, cost[work])
        used[work] += cost[work]
        assert max(used.values()) - min(used.values()) <= 2 * max(cost.values())


def test_a_kind_without_work_saves_no_time_up() -> None:
    clock = FairClock()
    for _ in range(100):
        clock.choose({Work.DECODE})
        clock.charge(Work.DECODE, 1.0)
    turns = []
    for _ in range(10):
        work = clock.choose({Work.DECODE, Work.IMAGES})
        assert work is not None
        clock.charge(work, 1.0)
        turns.append(work)
    assert 4 <= turns.count(Work.DECODE) <= 6
    assert clock.choose(set()) is None


IMAGE = 9  # the <image> token of these tests
N = 2


def chain(tokens: list[int], images: list[int], model: str = "m") -> tuple[bytes, ...]:
    pixels = tuple(np.full((2, 2, 3), value, np.float32) for value in images)
    prompt = Prompt(np.array(tokens, np.int32), pixels)
    return prefix_chain(
        prompt, [image_digest(one) for one in pixels], model=model, chunk=4, image_token_id=IMAGE, num_image_tokens=N
    )


def test_a_prefix_is_its_tokens_images_and_model() -> None:
    tokens = [1, 2, IMAGE, IMAGE, 5, 6, IMAGE, IMAGE, 3, 4, 5]
    first = chain(tokens, [0, 1])
    assert len(first) == 2  # the last token is not prefilled
    assert chain(tokens, [0, 2])[0] == first[0]
    assert chain(tokens, [0, 2])[1] != first[1]
    assert chain(tokens, [3, 1])[0] != first[0]
    assert chain([*tokens, 7, 8], [0, 1])[:2] == first
    assert chain(tokens, [0, 1], model="other")[0] != first[0]
    assert chain([1, 2, 3, 4], []) == ()


def test_slots_prefer_the_longest_shared_prefix_then_the_least_recently_used() -> None:
    slots = Slots(3)
    assert slots.take(()) == (0, 0)
    assert slots.take(()) == (1, 0)
    slots.release(0, (b"a", b"b"))
    slots.release(1, (b"a", b"b", b"c"))
    assert slots.take((b"a", b"b", b"c", b"d")) == (1, 3)
    slots.release(1)  # aborted: nothing to share
    assert slots.take((b"a", b"b", b"c")) == (0, 2)
    assert slots.take((b"a",)) == (2, 0)
    assert slots.free == 1


@hypothesis.settings(
    max_examples=200, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(data=st.data())
def test_streamed_text_is_the_decoded_text(emu: EmuPipeline, data: st.DataObject) -> None:
    """Whatever the ids and however they arrive, bytes of unfinished characters among them."""
    ids = data.draw(st.lists(st.integers(0, emu.tokenizer.vocab_size - 1), max_size=30))
    ids += emu.tokenizer.encode(data.draw(st.text(max_size=10)))
    stream, text = TextStream(emu.tokenizer), ""
    while ids:
        count = data.draw(st.integers(1, len(ids)))
        text += stream.feed(ids[:count])
        ids = ids[count:]
    text += stream.close()
    assert text == emu.tokenizer.decode(stream._ids).strip()


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(text=st.text("abc ", max_size=30), stop=st.text("abc", min_size=1, max_size=3))
def test_nothing_of_a_stop_sequence_is_sent(emu: EmuPipeline, text: str, stop: str) -> None:
    stream, sent = TextStream(emu.tokenizer, stops=[stop]), ""
    ids = emu.tokenizer.encode(text)
    for one in ids:
        sent += stream.feed([one])
        if stream.stopped:
            break
    sent += stream.close()
    decoded = emu.tokenizer.decode(ids).strip()
    assert sent == (decoded.partition(stop)[0].rstrip() if stop in decoded else decoded)


def test_a_model_without_a_visual_decoder_says_so(emu: EmuPipeline) -> None:
    """Found before any work, for images alone and in a chat."""
    without = EmuPipeline(emu.config, emu.params, tokenizer=emu.tokenizer)
    config = dataclasses.replace(ENGINE, image_sizes=())
    engine = create_engine(without, config, create_device(without, config, {MODEL: emu.params}))
    prepare = Preparation(without, engine, Limits(), system="")
    with pytest.raises(ApiError, match="no visual decoder"):
        prepare.images(parse_image_request({"prompt": "a"}), [], model=MODEL)
    with pytest.raises(ApiError, match="no visual decoder"):
        prepare.chat(parse_chat({"messages": user("a"), "modalities": ["image"]}), model=MODEL)


def test_tiny_temperatures_take_the_most_likely_token() -> None:
    for small in ({"temperature": 1e-6}, {"temperature": 1.0, "top_p": 1e-9}, {"top_p": 0}, {"temperature": 0}):
        body = parse_chat({"messages": user("a"), "top_k": 5} | small)
        assert (body.options["temperature"], body.options["top_p"], body.options["top_k"]) == (0.0, 1.0, 0)


def test_an_image_is_34_tokens_with_the_released_sizes() -> None:
    pixels = np.zeros((2, 2, 3), np.float32)
    prompt = Prompt(np.zeros(80, np.int32), (pixels, pixels))
    usage = prompt_usage(prompt, num_image_tokens=32)
    assert (usage.tokens, usage.image_tokens) == (80, 68)
    assert prompt_usage(prompt, num_image_tokens=32, opens_image=True).tokens == 79
    assert answer_usage(5, 2, num_image_tokens=32).tokens == 73


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::10.0.0.1", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::93.184.216.34", True),
        ("64:ff9b:1::1", False),
        ("2002:a00:1::1", False),
        ("2001:0:a00:1::1", False),
        ("fec0::1", False),
        ("3fff::1", False),
        ("::ffff:93.184.216.34", True),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


class Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/")
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        else:
            body = b"x" * (2000 if self.path == "/large" else 10)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def files() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


LIMITS = Limits(max_image_bytes=1000, url_hosts=("localhost", "nowhere.invalid"), fetch_seconds=5)


def test_a_host_that_resolves_to_a_private_address_is_refused(files: str) -> None:
    with pytest.raises(ApiError, match="not public"):
        fetch(f"{files}/a.png", field="url", limits=LIMITS)


def test_fetching(files: str) -> None:
    """With the address allowed, to see the rest: no redirects, a bounded size, only the named hosts."""
    get = lambda url: fetch(url, field="url", limits=LIMITS, allowed=lambda address: True)
    assert get(f"{files}/a.png?size=1") == b"x" * 10
    for url, word in {
        f"{files}/redirect": "redirects are not followed",
        f"{files}/missing": "status 404",
        files.replace("localhost", "127.0.0.1"): "not accepted",
        files.replace("http://", "http://user@"): "no user name",
        files.replace("http://", "ftp://"): "must begin with",
        "http://nowhere.invalid/a.png": "cannot be resolved",
        "http://localhost:1/": "did not deliver",
        "http://[half": "malformed",
    }.items():
        with pytest.raises(ApiError, match=word) as refused:
            get(url)
        assert refused.value.status == 400
    with pytest.raises(ApiError) as refused:
        get(f"{files}/large")
    assert refused.value.status == 413


def test_key_files(tmp_path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("# keys\nfirst\n\n second \n")
    assert read_keys(path) == ("first", "second")
    assert read_keys(None) == ()
    path.write_text("# none\n")
    for wrong in (path, tmp_path / "missing", tmp_path):
        with pytest.raises(UserError):
            read_keys(wrong)


@pytest.mark.parametrize(
    "sizes", [{"slots": 0}, {"context": 100}, {"prefill_chunk": 6}, {"timeout": 0}, {"max_queue": -1}, {"max_beams": 0}]
)
def test_sizes_that_cannot_be(sizes: dict) -> None:
    with pytest.raises(UserError):
        EngineConfig(**sizes)
