"""The command `compile` on invalid arguments. Its results are tested in tests/compile_analysis."""

import importlib.util

import pytest

from emu_jax.cli import compile as command
from emu_jax.compile_analysis.programs import PROGRAMS
from emu_jax.errors import UserError

CONFIG = "--config=configs/pretrain_14b.py"


def test_error_for_an_unknown_topology_lists_all():
    with pytest.raises(UserError, match=r"v5p:4x4x4.*v6e:16x16"):
        command.main([CONFIG, "--topology=v5p:5x5x5"])


def test_missing_compiler_is_an_error_with_the_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[compile\]'"):
        command.main([CONFIG, "--topology=v5p:4x4x4"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG], "--topology"),
        (["--topology=v5e:4x4"], "required: --config"),
        ([CONFIG, "--topology=v5e:4x4", "--program=fly"], "fly"),
        ([CONFIG, "--topology=v5e:4x4", "--mesh=rows:16"], "data:1,fsdp:-1,tensor:1"),
        ([CONFIG, "--topology=v5e:4x4", "--rows=0"], "--rows"),
        ([CONFIG, "--topology=v5e:4x4", "--slices=0"], "--slices"),
        (["--config=configs/tiny.py", "--topology=v5e:4x4"], "config.model.decoder.vocab_size"),
    ],
)
def test_invalid_arguments_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        command.main(arguments)


def test_every_program_can_be_chosen():
    assert set(command.PROGRAMS) == set(PROGRAMS)
