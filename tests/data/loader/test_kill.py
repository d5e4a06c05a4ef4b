"""After kill -9, a new process resumes with the next batch, bit for bit, and no worker is left running."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

pytestmark = pytest.mark.e2e

SAVED, LAST, TIMEOUT = 3, 8, 240  # batches, batches, seconds

READER = """
import hashlib, json, sys
from pathlib import Path

from emu_jax.data.batch import BatchConfig
from emu_jax.data.loader.config import DataConfig, SetConfig
from emu_jax.data.loader.pipeline import make_loader
from emu_jax.data.tokenizer import Tokenizer

if __name__ == "__main__":
    folder, workers, tokenizer, *sets = sys.argv[1:]
    folder = Path(folder)
    config = DataConfig(
        sets=tuple(SetConfig(path=path) for path in sets),
        batch=BatchConfig(batch_size=2, length=96, max_images=4, image_size=8),
        num_image_tokens=2,
        pool=16,
        workers=int(workers),
    )
    loader = make_loader(config, tokenizer=Tokenizer.load(tokenizer, instruct=True), seed=3)
    saved, number = folder / "state.json", 0
    if saved.exists():
        number, state = json.loads(saved.read_text())
        loader.set_state(state)
    while True:
        batch = next(loader)
        digest = hashlib.sha256()
        for name in sorted(batch):
            digest.update(name.encode() + str((batch[name].dtype, batch[name].shape)).encode() + batch[name].tobytes())
        print(number, digest.hexdigest(), flush=True)
        number += 1
        if number == {saved} and not saved.exists():
            saved.write_text(json.dumps([number, loader.get_state()]))
""".replace("{saved}", str(SAVED))


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_and_resume(sets, small_tokenizer, tmp_path, root, workers):
    (tmp_path / "reader.py").write_text(READER)
    small_tokenizer.save(tmp_path / "t.model")
    arguments = [tmp_path / "reader.py", tmp_path, workers, tmp_path / "t.model", *sets.values()]

    def read(until):
        """Return digests by batch number up to `until`, then kill -9."""
        environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment
        )
        found = {}
        assert process.stdout is not None
        for line in process.stdout:
            number, digest = line.split()
            found[int(number)] = digest
            if int(number) == until:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        _, left = psutil.wait_procs([c for c in children if "tracker" not in " ".join(_command(c))], timeout=TIMEOUT)
        assert left == [], "workers end with the process that reads from them"
        return found

    first = read(LAST)
    assert sorted(first) == list(range(LAST + 1))
    second = read(LAST)
    assert sorted(second) == list(range(SAVED, LAST + 1))
    assert all(second[n] == first[n] for n in second)
    assert len(set(first.values())) == len(first)


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []
