"""The terminal: commands, completion, history, Ctrl-C, and images inside terminals."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from emu_jax.chat.session import Session
from emu_jax.chat.terminal import ChatCompleter, Terminal, read_line
from emu_jax.chat.terminal_images import Protocol, escape_sequences, find_protocol
from emu_jax.errors import UserError
from emu_jax.serving.local import LocalClient
from tests.serving.conftest import png, solid_image, wait_until

OPTIONS = {"temperature": 0.0, "max_tokens": 4, "seed": 0, "num_inference_steps": 2}


@pytest.fixture
def terminal(local: LocalClient, tmp_path: Path) -> Terminal:
    (tmp_path / "a.png").write_bytes(png(solid_image(200, 0, 0)))
    return Terminal(Session(local, tmp_path, dict(OPTIONS)))


def test_typed_lines(terminal: Terminal, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Typed as a person would: an inserted image, an error, a drawing, the history in its file."""
    with create_pipe_input() as keys:
        read = read_line(tmp_path / "state" / "history", input=keys, output=DummyOutput())
        keys.send_text(f"/image {tmp_path}/a.png\nwhat is this?\n/seed x\n/draw a dog\n/quit\n")
        terminal.run(read)
    printed = capsys.readouterr().out
    assert f"{tmp_path}/a.png comes before the next question" in printed
    assert "error: A seed is an integer, not 'x'." in printed
    assert str(tmp_path / "emu-1.png") in printed
    assert [message["role"] for message in terminal.session.messages] == ["user", "assistant"] * 2
    assert terminal.session.messages[0]["content"][0]["type"] == "image_url"
    assert "+/draw a dog" in (tmp_path / "state" / "history").read_text()


def test_an_interrupt_ends_the_answer_and_not_the_program(
    terminal: Terminal, local: LocalClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real signal while the answer is generated: its slot is free, and the next answer is complete."""
    do = local.engine._text.do
    monkeypatch.setattr(local.engine._text, "do", lambda work: (time.sleep(0.05), do(work)))
    lines = iter(["/system be brief", "a dog", "a dog", "/quit"])
    terminal.session.options |= {"max_tokens": 150, "min_tokens": 150}

    def interrupt() -> None:
        wait_until(lambda: local.engine.in_flight == 1, seconds=10)
        os.kill(os.getpid(), signal.SIGINT)

    def read() -> str:
        line = next(lines)
        if line == "a dog" and terminal.session.options["max_tokens"] == 150:
            threading.Thread(target=interrupt).start()
        return line

    take = Terminal.take

    def take_and_shorten(self: Terminal, line: str) -> None:
        try:
            take(self, line)
        finally:
            if line == "a dog":
                wait_until(lambda: local.engine.in_flight == 0, seconds=1)
                self.session.options |= {"max_tokens": 4, "min_tokens": 0}

    monkeypatch.setattr(Terminal, "take", take_and_shorten)
    # A shell starts background jobs with SIGINT ignored; a terminal does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        terminal.run(read)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "\nstopped\n" in capsys.readouterr().out
    assert [message["role"] for message in terminal.session.messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize("line", ["/draw", "/image", "/edit a.png", "/edit 'a", "/seed", "/nothing", "/image a.txt"])
def test_incomplete_commands(terminal: Terminal, line: str) -> None:
    with pytest.raises(UserError):
        terminal.take(line)


def test_completion(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    complete = lambda text: [c.text for c in ChatCompleter().get_completions(Document(text), CompleteEvent())]
    assert complete("/s") == ["/system", "/seed", "/save"]
    assert complete(f"/image {tmp_path}/pho") == ["to.jpg"]
    assert complete("hello") == []


def test_the_protocol_of_a_terminal() -> None:
    for environment, expected in (
        ({"TERM": "xterm-kitty"}, Protocol.KITTY),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, Protocol.ITERM),
        ({"TERM": "foot"}, Protocol.SIXEL),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({}, None),
    ):
        assert find_protocol(environment) is expected


def test_escape_sequences_contain_the_image(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 60, 3), np.uint8))
    data = png(image)
    kitty = escape_sequences(data, Protocol.KITTY).split("\x1b\\")[:-1]
    assert all(chunk.startswith("\x1b_G") and len(chunk) < 4200 for chunk in kitty)
    assert ["m=0" in chunk.partition(";")[0] for chunk in kitty] == [False] * (len(kitty) - 1) + [True]
    assert base64.b64decode("".join(chunk.partition(";")[2] for chunk in kitty)) == data
    iterm = escape_sequences(data, Protocol.ITERM)
    assert base64.b64decode(iterm.partition(":")[2].rstrip("\x07")) == data
    terminal.images = Protocol.KITTY
    terminal.take("/draw a dog")
    assert "\x1b_Ga=T" in capsys.readouterr().out


def test_sixels_are_the_pixels() -> None:
    """An image of three colors, decoded again."""
    pixels = np.zeros((13, 9, 3), np.uint8)
    pixels[4:, :5], pixels[:7, 6:] = (255, 0, 0), (0, 0, 255)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    np.testing.assert_array_equal(decode_sixels(escape_sequences(file.getvalue(), Protocol.SIXEL)), pixels)


def decode_sixels(data: str) -> np.ndarray:
    """The image of sixel data whose raster attributes give its size."""
    head = re.match(r'\x1bPq"1;1;(\d+);(\d+)', data)
    assert head is not None
    width, height = int(head[1]), int(head[2])
    image, colors = np.zeros((height, width, 3), np.uint8), {}
    x = y = color = 0
    for token in re.findall(r"#\d+;2;\d+;\d+;\d+|#\d+|!\d+.|[$\-?-~]", data[head.end() : -2]):
        if token.startswith("#") and ";" in token:
            number, _, *levels = map(int, token[1:].split(";"))
            colors[number] = [round(level * 255 / 100) for level in levels]
        elif token.startswith("#"):
            color = int(token[1:])
        elif token in "$-":
            x, y = 0, y + 6 * (token == "-")
        else:
            count = int(token[1:-1]) if token.startswith("!") else 1
            for bit in range(6):
                if (ord(token[-1]) - 63) >> bit & 1:
                    image[y + bit, x : x + count] = colors[color]
            x += count
    return image
