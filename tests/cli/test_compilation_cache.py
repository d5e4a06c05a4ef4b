"""Compiled programs are saved between starts of a command."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from emu_jax import __main__, cli
from emu_jax.cli import compilation_cache

PROGRAM = """
from emu_jax.cli.compilation_cache import use_compilation_cache
use_compilation_cache()
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("compilation_cache/cache_hits")))
step = jax.jit(lambda state, x: {"sum": state["sum"] + x, "steps": state["steps"] + 1}, donate_argnums=0)
state = {"sum": jnp.zeros(1000), "steps": jnp.int32(0)}
for i in range(3):
    state = step(state, jnp.full(1000, float(i)))
print(sum(hits), state["steps"], state["sum"].sum())
"""


def run(tmp_path: Path, **variables: str) -> list[str]:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT", "XLA"))
    }
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", **variables}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert "error" not in done.stderr.lower(), done.stderr
    return done.stdout.split()


@pytest.mark.e2e
def test_the_second_process_loads_the_programs_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "emu_jax" / "compiled" / compilation_cache.machine()
    first, *results = run(tmp_path)
    programs = sorted(folder.glob("*-cache"))
    assert results == ["3", "3000.0"]
    assert len(programs) >= 3
    second, *results = run(tmp_path)
    assert int(second) >= len(programs) > int(first)
    assert sorted(folder.glob("*-cache")) == programs
    assert results == ["3", "3000.0"]
    assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == ["0", *results]


def test_variables_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {compilation_cache.DIRECTORY: "elsewhere"})
    compilation_cache.use_compilation_cache()
    assert os.environ[compilation_cache.DIRECTORY] == "elsewhere"
    assert set(os.environ) == {compilation_cache.DIRECTORY, *compilation_cache.SETTINGS}


@pytest.mark.parametrize(
    ("workdir", "chosen", "expected"),
    [("gs://b/run", None, "gs://b/run/compiled"), ("runs/a", None, None), ("gs://b/run", "elsewhere", None)],
)
def test_pods_use_their_bucket(
    monkeypatch: pytest.MonkeyPatch, workdir: str, chosen: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(os, "environ", {} if chosen is None else {compilation_cache.DIRECTORY: chosen})
    compilation_cache.use_compilation_cache()
    updates: dict[str, object] = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    compilation_cache.use_bucket(workdir)
    assert updates.get("jax_compilation_cache_dir") == expected
    assert updates.get("jax_compilation_cache_max_size") == (None if expected is None else -1)


def test_another_cpu_has_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for cpu in (("model name: A", "flags: avx2"), ("model name: A", "flags: avx2 avx512f"), ("model name: B",)):
        monkeypatch.setattr(compilation_cache, "_cpu", lambda cpu=cpu: cpu)
        names.add(compilation_cache.machine())
    assert len(names) == 3


def test_no_cache_is_an_option_of_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(cli, "load", lambda name: types.SimpleNamespace(main=seen.append))
    monkeypatch.setenv(compilation_cache.SWITCH, "true")
    assert __main__.main(["train", "--no-cache", "--workdir=runs/a"]) == 0
    assert seen == [["--workdir=runs/a"]]
    assert os.environ[compilation_cache.SWITCH] == "false"
