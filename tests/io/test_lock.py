"""The lock of a folder: one holder, released when its process is killed."""

import shutil
import subprocess
import sys

import pytest

from emu_jax.errors import UserError
from emu_jax.io.lock import folder_lock

HOLD = """
import sys, time
from emu_jax.io.lock import folder_lock

with folder_lock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_refused_until_the_first_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"is in use by process {holder.pid} on "), folder_lock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with folder_lock(tmp_path):
        pass


def test_a_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(KeyError), folder_lock(tmp_path / "new"):
        raise KeyError
    with folder_lock(tmp_path / "new"), pytest.raises(UserError, match="in use"), folder_lock(tmp_path / "new"):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot lock"), folder_lock(tmp_path / "file" / "run"):
        pass


def test_the_block_may_remove_the_folder_of_the_lock(tmp_path):
    with folder_lock(tmp_path / "new"):
        shutil.rmtree(tmp_path / "new")
    with folder_lock(tmp_path / "new"), pytest.raises(UserError, match="in use"), folder_lock(tmp_path / "new"):
        pass
