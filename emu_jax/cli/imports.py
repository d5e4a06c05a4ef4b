"""Import the heavy modules of a command after its arguments are parsed, so that --help answers immediately."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

INTERRUPTED = 130  # exit code 128 + SIGINT, as in shells
INTERRUPTED_MESSAGE = "\ninterrupted"


@contextlib.contextmanager
def heavy_imports() -> Iterator[None]:
    """Let Ctrl-C exit immediately in the block: imports need no cleanup, and a C extension would hide the interrupt.

    with heavy_imports():
        import jax
    """

    def leave(signum: int, frame: object) -> None:
        os.write(2, f"{INTERRUPTED_MESSAGE}\n".encode())
        os._exit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may change handlers
        yield
        return
    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
