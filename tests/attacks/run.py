"""Attack the program for some minutes, and print a table of the outcomes.

    python tests/attacks/run.py --seed 1 --minutes 20

The attacks follow from the seed alone. The exit code is 1 if an attack ended in a traceback, a wrong success or a hang.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Attempts of each kind in one round; they are of very different cost.
ROUND = {
    "wrong invocations": 20,
    "damaged input files": 200,
    "damaged images and videos": 100,
    "damaged checkpoints": 10,
    "terminal and environment": 1,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run rounds of attacks until the time is over; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", choices=ROUND, help="only this kind of attack")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    from tests.attacks.trial import Table, attempt

    table, end = Table(), time.monotonic() + 60 * arguments.minutes
    kinds = [kind() for kind in attacks() if arguments.only in (None, kind.name)]
    number = 0
    while time.monotonic() < end:
        for attack in kinds:
            for i in range(ROUND[attack.name]):
                if time.monotonic() > end:
                    break
                table.add(attack.name, attempt(attack, random.Random(f"{arguments.seed} {attack.name} {number} {i}")))
        number += 1
    print("\n".join(table.lines()))
    for failure in table.failures:
        print(failure, file=sys.stderr)
    return 1 if table.failures else 0


def attacks() -> list[type]:
    """Return the kinds of attacks."""
    from tests.attacks.checkpoints import DamagedCheckpoints
    from tests.attacks.inputs import DamagedInputs, DamagedMedia
    from tests.attacks.invocations import WrongInvocations
    from tests.attacks.terminal import Terminal

    return [WrongInvocations, DamagedInputs, DamagedMedia, DamagedCheckpoints, Terminal]


if __name__ == "__main__":
    sys.exit(main())
