import subprocess
import sys

_ALL_AT_ONCE = """
import sys, threading
from emu_jax.data.loader.prepared import PreparedSet

documents = PreparedSet(sys.argv[1])
begin, keys = threading.Barrier(8), []

def read(index):
    begin.wait()
    keys.append(documents[index].key)

threads = [threading.Thread(target=read, args=(index % len(documents),), daemon=True) for index in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*keys)
"""


def test_threads_that_all_begin_to_read_at_once_do_not_wait_for_each_other(sets):
    path = str(next(iter(sets.values())))
    done = subprocess.run([sys.executable, "-c", _ALL_AT_ONCE, path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 8
