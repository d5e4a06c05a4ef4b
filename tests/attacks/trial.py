"""One attack and its outcome, and the table of all of them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import random
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Protocol

HANG_SECONDS = 120


class Outcome(enum.Enum):
    """How the program answered an attack."""

    REFUSED = "refused"
    RIGHT = "right result"
    TRACEBACK = "traceback"
    WRONG = "wrong success"
    HANG = "hang"


GOOD = (Outcome.REFUSED, Outcome.RIGHT)


@dataclasses.dataclass(frozen=True)
class Trial:
    """The outcome of one attack, and what a person needs to repeat it."""

    outcome: Outcome
    description: str


class Attack(Protocol):
    """A kind of attack. `attempt` makes one, chosen by `rng` alone."""

    name: str

    def attempt(self, rng: random.Random) -> Trial:
        """Attack once."""


class Hang(BaseException):
    """An attack has no result after HANG_SECONDS."""


@contextlib.contextmanager
def time_limit(seconds: int = HANG_SECONDS) -> Iterator[None]:
    """Raise Hang in the block after `seconds`."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(attack: Attack, rng: random.Random) -> Trial:
    """Attack once; an exception that the attack does not expect is a traceback."""
    try:
        with time_limit():
            return attack.attempt(rng)
    except Hang:
        return Trial(Outcome.HANG, attack.name)
    except Exception as error:
        return Trial(Outcome.TRACEBACK, f"{attack.name}: {type(error).__name__}: {error}")


class Table:
    """Counts of outcomes by kind of attack, and the failures."""

    def __init__(self) -> None:
        self.counts: dict[str, collections.Counter[Outcome]] = collections.defaultdict(collections.Counter)
        self.failures: list[str] = []

    def add(self, name: str, trial: Trial) -> None:
        """Count one trial."""
        self.counts[name][trial.outcome] += 1
        if trial.outcome not in GOOD:
            self.failures.append(f"{trial.outcome.value}: {trial.description}")

    def lines(self) -> list[str]:
        """Return a Markdown table."""
        header = ["attack", "tried", *(outcome.value for outcome in Outcome)]
        rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
        for name, counts in self.counts.items():
            rows.append([name, str(counts.total()), *(str(counts[outcome]) for outcome in Outcome)])
        return ["| " + " | ".join(row) + " |" for row in rows]
