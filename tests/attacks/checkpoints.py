"""Damaged checkpoints: a wrong weight or data state is never used."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

from emu_jax.checkpoints.manager import Checkpoints
from tests.attacks.trial import Outcome, Trial
from tests.checkpoints.test_damage import CONFIG, arrays, assert_same, check_readers, restore

ITEMS = ("params", "optimizer", "data", "config", "fingerprints")


class DamagedCheckpoints:
    """One or two files of the newest step are damaged, missing, or from another step."""

    name = "damaged checkpoints"

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        checkpoints = Checkpoints(self.folder / "intact")
        for step in (100, 200):
            params, optimizer = arrays(step)
            config = CONFIG | {"steps": step}
            checkpoints.save(step, params=params, optimizer=optimizer, data={"index": step}, config=config)
        checkpoints.close()

    def attempt(self, rng: random.Random) -> Trial:
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder / "intact", copy)
        description = ", ".join(damage_step(copy, rng) for _ in range(rng.choice((1, 1, 2))))
        try:
            check_readers(copy, 200)
            restored = restore(copy)
            assert restored is not None, "no checkpoint was found"
            params, optimizer = arrays(restored.step)
            assert_same(restored.params, params)
            assert_same(restored.optimizer, optimizer)
            assert restored.data == [{"index": restored.step}]
        except AssertionError as error:
            return Trial(Outcome.WRONG, f"{description}: {str(error)[:300]}")
        return Trial(Outcome.RIGHT if restored.step == 200 else Outcome.REFUSED, description)


def damage_step(run: Path, rng: random.Random) -> str:
    """Damage step 200 of the run, and return a description."""
    kind = rng.choice(("bit", "bit", "bit", "truncated", "emptied", "deleted", "zeros", "of another step"))
    if kind == "of another step":
        item = rng.choice(ITEMS)
        shutil.rmtree(run / "200" / item, ignore_errors=True)
        shutil.copytree(run / "100" / item, run / "200" / item)
        return f"{item} {kind}"
    files = sorted(path for path in (run / "200").rglob("*") if path.is_file() and path.stat().st_size)
    file = rng.choice(files)
    data = bytearray(file.read_bytes())
    at = rng.randrange(len(data))
    match kind:
        case "bit":
            data[at] ^= 1 << rng.randrange(8)
        case "zeros":
            data[at : at + 16] = bytes(len(data[at : at + 16]))
        case "truncated":
            del data[at:]
        case "emptied":
            data.clear()
    if kind == "deleted":
        file.unlink()
    else:
        file.write_bytes(data)
    return f"{file.relative_to(run)} {kind} at {at}"
