"""Stored records are read by several threads."""

import subprocess
import sys

_CONCURRENT_READS = """
import sys, threading
from emu_jax.data.loader.prepared_set import PreparedSet

documents = PreparedSet(sys.argv[1])
start, keys = threading.Barrier(8), []

def read(index):
    start.wait()
    keys.append(documents[index].key)

threads = [threading.Thread(target=read, args=(index % len(documents),), daemon=True) for index in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*keys)
"""


def test_threads_that_start_reading_at_the_same_time_do_not_deadlock(sets):
    path = str(next(iter(sets.values())))
    done = subprocess.run([sys.executable, "-c", _CONCURRENT_READS, path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 8
