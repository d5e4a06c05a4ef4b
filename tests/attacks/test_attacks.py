"""A short run of each kind of attack; `python tests/attacks/run.py` is the long one."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacks.checkpoints import DamagedCheckpoints
from tests.attacks.inputs import DamagedInputs, DamagedMedia
from tests.attacks.invocations import WrongInvocations
from tests.attacks.terminal import Terminal
from tests.attacks.trial import Attack, Outcome, Table, Trial, attempt


def attack(kind: Attack, count: int) -> None:
    table = Table()
    for i in range(count):
        table.add(kind.name, attempt(kind, random.Random(f"test {i}")))
    assert table.failures == []


def test_damaged_inputs() -> None:
    attack(DamagedInputs(), 200)


def test_damaged_media() -> None:
    attack(DamagedMedia(), 200)


def test_damaged_checkpoints() -> None:
    attack(DamagedCheckpoints(), 5)


@pytest.mark.e2e
def test_wrong_invocations(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.chdir(root)
    attack(WrongInvocations(), 60)


@pytest.mark.e2e
def test_terminal() -> None:
    attack(Terminal(), 4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_long(seed: int, root: Path) -> None:
    line = [sys.executable, "tests/attacks/run.py", f"--seed={seed}", "--minutes=15"]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


class Fails:
    name = "fails"

    def attempt(self, rng: random.Random) -> Trial:
        if rng.random() < 0.5:
            raise ValueError("a defect")
        return Trial(Outcome.WRONG, "used a wrong weight")


def test_the_table_counts_defects() -> None:
    table = Table()
    for i in range(20):
        table.add("fails", attempt(Fails(), random.Random(i)))
    counts = table.counts["fails"]
    assert counts[Outcome.TRACEBACK] + counts[Outcome.WRONG] == len(table.failures) == 20
    assert min(counts[Outcome.TRACEBACK], counts[Outcome.WRONG]) > 0
