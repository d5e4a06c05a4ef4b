"""`generate` with a model that is sharded over the devices of two processes: the answers of one device."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from emu_jax.checkpoints.model_directory import save_model
from emu_jax.convert.visual_decoder import save_visual_decoder
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.models.presets import emu_tiny
from tests.generation.conftest import LINES, random_params, tiny_visual_decoder
from tests.hosts import start_hosts

pytestmark = pytest.mark.e2e

TEXT = ["a red circle", "--max-new-tokens", "6", "--num-beams", "2"]
IMAGE = ["a red circle", "--output", "circle.png", "--steps", "2"]


def generate(checkpoint: Path, folder: Path, words: list[str], *, root: Path, processes: int = 1) -> list[str]:
    """Return the standard output of each process."""
    mesh = ["--mesh", "fsdp:2,tensor:2"] if processes > 1 else []
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "emu_jax", "generate", "--checkpoint", str(checkpoint), *mesh, *words]
    running = start_hosts(command, count=processes, devices=2, root=root, cwd=folder)
    ends = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0] * processes, [err[-3000:] for _, err in ends]
    gloo = re.compile(r"\[Gloo\] Rank.*\n|.*peer ranks.*\n")  # two threads of the library write at once
    return [gloo.sub("", out) for out, _ in ends]


def test_two_processes_answer_as_one_device(tmp_path: Path, root: Path) -> None:
    tokenizer = train_tokenizer(LINES * 4, tmp_path / "tokenizer.model", vocab_size=300)
    config = emu_tiny(vocab_size=tokenizer.vocab_size)
    model = tmp_path / "model"
    save_model(model, config, random_params(config), tokenizer=tmp_path / "tokenizer.model")
    save_visual_decoder(tiny_visual_decoder(config.decoder.width), model / "visual_decoder")

    (alone,) = generate(model, tmp_path / "one", TEXT, root=root)
    assert alone.strip()
    assert generate(model, tmp_path / "two", TEXT, root=root, processes=2) == [alone, ""]

    generate(model, tmp_path / "one", IMAGE, root=root)
    first, second = generate(model, tmp_path / "two", IMAGE, root=root, processes=2)
    assert first.startswith("circle.png: 1 image of")
    assert second == ""
    assert (tmp_path / "two" / "circle.png").read_bytes() == (tmp_path / "one" / "circle.png").read_bytes()
