"""The web page in a headless browser: upload, ask, tokens one after another, an image, stop, blend and edit.

The last test starts the page as a user does, by its command.
"""

from __future__ import annotations

import contextlib
import copy
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn

from emu_jax.chat.web import WebOptions, create_app
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.serving.local import LocalClient
from emu_jax.serving.server import listen
from tests.e2e.test_serve import checkpoint  # noqa: F401  (a fixture)
from tests.serving.conftest import MODEL, emu, png, solid_image, wait_until  # noqa: F401  (a fixture)
from tests.serving.test_chat import video

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no browser")

OPTIONS = {"model": MODEL, "temperature": 2.0, "max_tokens": 40, "min_tokens": 40, "seed": 1}
MILLISECONDS = 60_000


@pytest.fixture(scope="module")
def local(emu: EmuPipeline) -> Iterator[LocalClient]:  # noqa: F811
    client = LocalClient(copy.copy(emu), name=MODEL, slots=2, max_beams=2)
    client.wait_until_ready()
    yield client
    client.close()


@pytest.fixture(scope="module")
def url(local: LocalClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    web = WebOptions("127.0.0.1", 0, max_upload_mb=1, max_beams=2)
    app = create_app(local, web, OPTIONS, folder=tmp_path_factory.mktemp("images"))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    with listen("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=20)


@contextlib.contextmanager
def browse(url: str) -> Iterator[sync_api.Page]:
    """The open page; requests to any other host fail the test."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page(viewport={"width": 1280, "height": 1000})
        opened.set_default_timeout(MILLISECONDS)
        requests: list[str] = []
        opened.on("response", lambda response: requests.append(response.url))
        opened.goto(url)
        opened.wait_for_selector("#question textarea")
        yield opened
        assert [one for one in requests if not one.startswith((url, "data:", "blob:"))] == []
        browser.close()


@pytest.fixture
def page(url: str) -> Iterator[sync_api.Page]:
    with browse(url) as opened:
        yield opened


@pytest.fixture
def slow(local: LocalClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow the engine down, so that the browser sees the answer grow."""
    for work in (local.engine._text, local.engine._images):
        monkeypatch.setattr(work, "do", lambda *arguments, do=work.do: (time.sleep(0.2), do(*arguments)))


def ask(page: sync_api.Page, text: str) -> None:
    page.fill("#question textarea", text)
    page.press("#question textarea", "Enter")


def choose(page: sync_api.Page, answer: str) -> None:
    """Choose the kind of the next answers in the tab that is open first."""
    page.locator("label", has=page.get_by_role("radio", name=answer, exact=True)).first.click()


def last_answer(page: sync_api.Page) -> str:
    return page.evaluate("[...document.querySelectorAll('#conversation .bot')].map(e => e.innerText).join('')")


def test_a_conversation(page: sync_api.Page, local: LocalClient, tmp_path: Path, slow: None) -> None:
    """Upload an image, ask, see the text grow, stop it; then an image as the answer."""
    (tmp_path / "a.png").write_bytes(png(solid_image(200, 0, 0)))
    page.set_input_files("#question input[type=file]", str(tmp_path / "a.png"))
    page.wait_for_selector("#question .thumbnail-item, #question .thumbnails img")
    ask(page, "what is this?")
    page.wait_for_selector("#conversation .bot")
    lengths = set()
    deadline = time.monotonic() + 30
    while len(lengths) < 3:
        assert time.monotonic() < deadline, lengths
        lengths.add(len(last_answer(page)))
        time.sleep(0.05)
    assert page.locator("#conversation .user img").count() == 1
    assert local.engine.in_flight == 1
    page.click("#stop")
    wait_until(lambda: local.engine.in_flight == 0, seconds=2)
    page.wait_for_selector("text=(stopped)")

    choose(page, "image")
    ask(page, "a red circle")
    page.wait_for_selector("#conversation .bot img")
    page.screenshot(path=tmp_path / "chat.png")


def test_a_video(page: sync_api.Page, local: LocalClient, tmp_path: Path) -> None:
    """An uploaded video is shown in the conversation and is 8 frames of the question."""
    frames = [np.asarray(solid_image(30 * i, 0, 0, side=32)) for i in range(8)]
    (tmp_path / "clip.mp4").write_bytes(video(frames))
    encoded = local.engine.metrics.registry.get_sample_value("emu_encoded_images_total")
    page.set_input_files("#question input[type=file]", str(tmp_path / "clip.mp4"))
    page.locator("#question .thumbnail-item").first.wait_for()
    ask(page, "which way?")
    page.wait_for_selector("#conversation .bot")
    assert page.locator("#conversation .user video").count() == 1
    wait_until(lambda: local.engine.in_flight == 0, seconds=30)
    assert local.engine.metrics.registry.get_sample_value("emu_encoded_images_total") == encoded + 8


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_closed_tab_frees_the_slot(url: str, local: LocalClient, slow: None, kind: str) -> None:
    """The request is aborted, of text that is streamed and of an image that is not complete."""
    aborted = local.engine.metrics.registry.get_sample_value("emu_aborted_requests_total")
    with browse(url) as page:
        choose(page, kind)
        ask(page, "a red circle")
        wait_until(lambda: local.engine.in_flight == 1, seconds=30)
        page.close()
        assert wait_until(lambda: local.engine.in_flight == 0, seconds=30) < 2
    assert local.engine.metrics.registry.get_sample_value("emu_aborted_requests_total") == aborted + 1


def test_edit_and_blend(page: sync_api.Page, tmp_path: Path) -> None:
    for name, color in (("a", (200, 0, 0)), ("b", (0, 0, 200))):
        (tmp_path / f"{name}.png").write_bytes(png(solid_image(*color)))
    page.click("button[role=tab]:has-text('Edit')")
    page.set_input_files("#original input[type=file]", str(tmp_path / "a.png"))
    page.wait_for_selector("#original img")
    page.fill("#instruction textarea", "make it green")
    page.click("button:text-is('Edit') >> nth=-1")
    page.wait_for_selector("#edited img")
    page.click("button[role=tab]:has-text('Blend')")
    for i, name in enumerate("ab"):
        page.set_input_files(f"#blend-{i} input[type=file]", str(tmp_path / f"{name}.png"))
        page.wait_for_selector(f"#blend-{i} img")
    page.click("button:text-is('Blend') >> nth=-1")
    page.wait_for_selector("#blended img")
    page.screenshot(path=tmp_path / "blend.png")


def test_generate(page: sync_api.Page, tmp_path: Path) -> None:
    page.click("button[role=tab]:has-text('Generate')")
    page.fill("#prompt textarea", "a red circle")
    page.press("#prompt textarea", "Enter")
    page.wait_for_selector("#generated img")
    page.screenshot(path=tmp_path / "generate.png")


def test_uploads_are_bounded(page: sync_api.Page, tmp_path: Path) -> None:
    """A file of more bytes, or of another type, does not become part of a question; a small image does."""
    (tmp_path / "large.png").write_bytes(b"\x89PNG" + bytes(2 * 2**20))
    (tmp_path / "page.html").write_text("<script>alert(1)</script>")
    (tmp_path / "small.png").write_bytes(png(solid_image(200, 0, 0)))
    uploaded = page.locator("#question .thumbnail-item")
    for name in ("large.png", "page.html"):
        page.set_input_files("#question input[type=file]", str(tmp_path / name))
        time.sleep(1)
        assert uploaded.count() == 0, name
    page.set_input_files("#question input[type=file]", str(tmp_path / "small.png"))
    uploaded.first.wait_for()
    assert uploaded.count() == 1


def test_the_command(root: Path, user_environment: dict[str, str], checkpoint: Path, tmp_path: Path) -> None:  # noqa: F811
    """`chat --checkpoint DIR --web`: a question in the browser; SIGTERM ends it though the page is open."""
    environment = user_environment | {
        "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "TMPDIR": str(tmp_path),
    }  # fmt: skip
    options = ["--checkpoint", str(checkpoint), "--web", "--port", "0", "--max-tokens", "5", "--min-tokens", "5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "emu_jax", "chat", *options],
        cwd=root, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        found = next(match for line in lines if (match := re.search(r"web page at (http://127\.0\.0\.1:\d+)", line)))
        with browse(found[1]) as page:
            ask(page, "what is this?")
            page.wait_for_selector("#conversation .bot")
            choose(page, "image")
            ask(page, "a red circle")
            page.wait_for_selector("#conversation .bot img")
            assert [*tmp_path.glob("emu_jax_chat*/*/emu-1.png")]
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
    assert [*tmp_path.glob("emu_jax_chat*")] == []  # the images of the page
