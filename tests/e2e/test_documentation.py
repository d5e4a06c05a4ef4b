"""The documentation is true: its `sh` and `python` blocks run, and its other commands use flags that exist.

Blocks of a page run in order, in one folder, next to a server if they use one. Blocks marked `console` need a TPU, a
download or a long time: only their flags are checked.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

from emu_jax.checkpoints.model_directory import save_model
from emu_jax.convert.visual_decoder import save_visual_decoder
from emu_jax.generation.pipeline import EmuPipeline
from tests.serving.conftest import MODEL, emu, running  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SERVER, SERVED = "http://127.0.0.1:8000", '"demo"'  # in the documentation
MODEL_FOLDERS = ("runs/demo", "models/emu")
TIMEOUT = 300


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Return the language and the text of each fenced block in one of the languages."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language, text) for language, text in found if language in languages]


RUNNABLE = [page for page in PAGES if blocks(page, "sh", "python") and page.name != "CONTRIBUTING.md"]


@pytest.fixture
def folder(tmp_path: Path, emu: EmuPipeline) -> Path:  # noqa: F811
    """A user's folder: the configs, a photograph, and the small model that stands for a trained or imported one."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    PIL.Image.new("RGB", (48, 32), "teal").save(tmp_path / "photo.jpg")
    emu.tokenizer.save(tmp_path / "tokenizer.model")
    for name in MODEL_FOLDERS:
        save_model(tmp_path / name, emu.config, emu.params, tokenizer=tmp_path / "tokenizer.model")
        save_visual_decoder(emu.visual_decoder, tmp_path / name / "visual_decoder")
    return tmp_path


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page: Path, folder: Path, emu: EmuPipeline, user_environment: dict[str, str]) -> None:  # noqa: F811
    environment = user_environment | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    found = blocks(page, "sh", "python")
    with contextlib.ExitStack() as stack:
        if any(SERVER in text for _, text in found):
            url = stack.enter_context(running(emu)).url
            found = [(kind, text.replace(SERVER, url).replace(SERVED, f'"{MODEL}"')) for kind, text in found]
        run_blocks(found, folder, environment)


def run_blocks(found: list[tuple[str, str]], folder: Path, environment: dict[str, str]) -> None:
    for language, text in found:
        line = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        assert done.returncode == 0, f"{text}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


@functools.cache
def flags(command: str) -> set[str]:
    """Return the flags in the help text of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "emu_jax", *command.split(), "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"there is no command {command}: {done.stderr}"
    return set(re.findall(r"--[a-z][\w-]*", done.stdout))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_use_flags_that_exist(page: Path) -> None:
    wrong = []
    for _, text in blocks(page, "sh", "console", "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:3] != ["python", "-m", "emu_jax"]:
                continue
            command = " ".join(words[3:5]) if words[3] == "scaling" else words[3]
            used = {word.partition("=")[0] for word in words[4:] if re.match(r"--[a-z]", word)}
            unknown = {flag for flag in used - flags(command) if not flag.startswith("--config.")}
            wrong += [f"{line.strip()}: {flag}" for flag in sorted(unknown)]
    assert not wrong, "\n".join(wrong)
