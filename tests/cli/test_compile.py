"""`compile` on bad input; what it compiles is in tests/compile_analysis."""

import importlib.util

import pytest

from emu_jax.cli import compile as command
from emu_jax.errors import UserError

CONFIG = "--config=configs/pretrain_14b.py"


def test_an_unknown_topology_is_answered_with_the_list():
    with pytest.raises(UserError, match=r"v5p:4x4x4.*v6e:16x16"):
        command.main([CONFIG, "--topology=v5p:5x5x5"])


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[compile\]'"):
        command.main([CONFIG, "--topology=v5p:4x4x4"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([CONFIG], "--topology"),
        (["--topology=v5e:4x4"], "--config is missing"),
        ([CONFIG, "--topology=v5e:4x4", "--stage=fly"], "fly"),
        ([CONFIG, "--topology=v5e:4x4", "--mesh=rows:16"], "data:1,fsdp:64,tensor:1"),
        ([CONFIG, "--topology=v5e:4x4", "--rows=0"], "--rows"),
        ([CONFIG, "--topology=v5e:4x4", "--slices=0"], "--slices"),
        (["--config=configs/tiny.py", "--topology=v5e:4x4"], "config.model.decoder.vocab_size"),
    ],
)
def test_bad_words_are_one_clear_line(words, message):
    with pytest.raises(UserError, match=message):
        command.main(words)
