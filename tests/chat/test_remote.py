"""`chat --base-url` against a real server: streamed answers, images in files, files in questions, a stop."""

from __future__ import annotations

import base64
import builtins
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from emu_jax.chat.session import Session, question_parts
from emu_jax.chat.terminal import Terminal, printable
from emu_jax.cli import chat
from emu_jax.errors import UserError
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.serving.client import ServerClient
from tests.serving.conftest import (  # noqa: F401  (emu and slow are fixtures)
    MODEL,
    Running,
    emu,
    png,
    running,
    slow,
    solid_image,
    user,
    wait_until,
)
from tests.serving.test_chat import video

OPTIONS = {"model": MODEL, "temperature": 0.0, "max_tokens": 8}


@pytest.fixture(scope="module")
def server(emu: EmuPipeline) -> Iterator[Running]:  # noqa: F811
    with running(emu) as serving:
        yield serving


@pytest.fixture
def talk(server: Running, tmp_path: Path) -> Terminal:
    return Terminal(Session(ServerClient(server.url), tmp_path, dict(OPTIONS)))


def test_a_conversation(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command on: two questions, one with an image; an error in between; the answers are the server's."""
    (tmp_path / "a.png").write_bytes(png(solid_image(200, 0, 0)))
    lines = iter([f"<{tmp_path}/a.png> what is this?", "<missing.png>", "/nothing", "a dog", "/quit"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(lines))
    chat.main(["--base-url", server.url, "--max-tokens", "8"])
    printed = capsys.readouterr().out.partition("\n")[2]
    ask = lambda messages: server.client().chat.completions.create(messages=messages, **OPTIONS).choices[0].message
    first = user(solid_image(200, 0, 0), "what is this?")
    answer = ask(first).content
    second = [*first, {"role": "assistant", "content": answer}, *user("a dog")]
    expected = [
        printable(answer),
        "error: missing.png cannot be read (No such file or directory).",
        "error: There is no command /nothing; there are /image, /video, /draw, /edit, /system, /reset, /seed, /save "
        "and /quit.",
        printable(ask(second).content),
    ]
    assert printed == "\n".join([*expected, ""])
    assert printable("a\x1b[2Jb\r\n\u009bc") == "a[2Jb\nc"


def test_images(talk: Terminal, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/draw and /edit write files and print their paths; a seed gives the same image again; /save keeps them."""
    (tmp_path / "a.png").write_bytes(png(solid_image(0, 0, 200)))
    talk.take("/seed 5")
    talk.take("/draw a red circle")
    talk.take("/reset")
    talk.take("/draw a red circle")
    assert (tmp_path / "emu-1.png").read_bytes() == (tmp_path / "emu-2.png").read_bytes()
    talk.take(f"/edit {tmp_path}/a.png make it green")
    assert str(tmp_path / "emu-3.png") in capsys.readouterr().out
    talk.take(f"/image {tmp_path}/a.png")
    talk.take("what is this?")
    talk.take(f"/save {tmp_path}/story.md")
    page = (tmp_path / "story.md").read_text()
    assert page.count("![](") == 4
    saved = np.asarray(PIL.Image.open(io.BytesIO((tmp_path / "story-1.png").read_bytes())))
    np.testing.assert_array_equal(saved, np.asarray(PIL.Image.open(tmp_path / "emu-2.png")))


def test_a_video(talk: Terminal, server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/video is 8 frames of the next question; the answer is the server's, and /save writes the file again."""
    clip = video([np.asarray(solid_image(30 * i, 0, 0, side=32)) for i in range(8)])
    (tmp_path / "clip.mp4").write_bytes(clip)
    encoded = server.metric("emu_encoded_images_total")
    talk.take(f"/video {tmp_path}/clip.mp4")
    talk.take("which way?")
    assert server.metric("emu_encoded_images_total") == encoded + 8
    url = f"data:video/mp4;base64,{base64.b64encode(clip).decode()}"
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "which way?"}]
    got = server.client().chat.completions.create(messages=[{"role": "user", "content": content}], **OPTIONS)
    assert capsys.readouterr().out.endswith(f"\n{printable(got.choices[0].message.content)}\n")
    talk.take(f"/save {tmp_path}/story.md")
    assert (tmp_path / "story-1.mp4").read_bytes() == clip


@pytest.mark.parametrize("line", ["/seed x", "/image none.png", "/image none.txt", "/edit none.png make it red"])
def test_bad_lines(talk: Terminal, line: str) -> None:
    with pytest.raises(UserError):
        talk.take(line)


def test_a_stopped_answer_is_forgotten_and_its_request_aborted(
    talk: Terminal, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk.session.options["max_tokens"] = 80
    talk.session.options["temperature"] = 2.0
    printed = builtins.print

    def interrupted(*words: object, **options: object) -> None:
        if options.get("end") == "":
            raise KeyboardInterrupt
        printed(*words, **options)

    monkeypatch.setattr(builtins, "print", interrupted)
    with pytest.raises(KeyboardInterrupt):
        talk.take("a red circle")
    assert talk.session.messages == []
    assert wait_until(lambda: server.engine.in_flight == 0, seconds=5) < 1


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("kind", ["text", "image in the answer", "image"])
def test_stop_aborts_the_request_at_any_time(talk: Terminal, server: Running, kind: str) -> None:
    """From another thread, before the server sent anything; nothing joins the conversation, and no error is shown."""
    session, steps = talk.session, {"num_inference_steps": 100}
    answer = {
        "text": lambda: session.ask(question_parts("a dog"), max_tokens=80, min_tokens=80, temperature=2.0),
        "image in the answer": lambda: session.draw("a dog", **steps),
        "image": lambda: session.create("a dog", **steps),
    }[kind]()
    pieces: list[str | Path] = []
    thread = threading.Thread(target=lambda: pieces.extend(answer))
    thread.start()
    wait_until(lambda: server.engine.in_flight == 1, seconds=10)
    session.stop()
    assert wait_until(lambda: server.engine.in_flight == 0, seconds=10) < 1
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert session.stopped
    assert session.messages == []
    assert not any(isinstance(piece, Path) for piece in pieces)


def test_no_server(tmp_path: Path) -> None:
    for url, message in (("http://127.0.0.1:1", "no server"), ("127.0.0.1", "must begin with")):
        with pytest.raises(UserError, match=message):
            chat.main(["--base-url", url])
    with pytest.raises(UserError, match="none"):
        chat.main(["--base-url", "http://127.0.0.1:1", "--api-key-file", str(tmp_path / "none")])
