"""Mistakes in the options of `serve`, found before the model is read."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from emu_jax.cli import serve
from emu_jax.errors import UserError
from emu_jax.serving.server import listen


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--checkpoint"),
        (("--checkpoint", "none"), "no model"),
        (("--checkpoint", "none", "--api-key-file", "none"), "cannot be read"),
        (("--checkpoint", "none", "--image-size", "8"), "WIDTHxHEIGHT"),
        (("--checkpoint", "none", "--mesh", "data"), "mesh"),
        (("--checkpoint", "none", "--slots", "many"), "--slots"),
        (("--checkpoint", "none", "--port", "65536"), "--port: must be at most 65535, not 65536"),
        (("--checkpoint", "none", "--port", "-1"), "--port: must be at least 0, not -1"),
    ],
)
def test_bad_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        serve.main(list(words))


def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot listen"):
            listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="cannot listen"):
        listen("nowhere.invalid", 8000)
    with pytest.raises(UserError, match="cannot listen"):
        listen("a" * 70, 8000)
