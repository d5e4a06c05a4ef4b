"""`python -m emu_jax COMMAND`: finds the command, runs it, and turns its end into an exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from emu_jax import cli
from emu_jax.errors import UserError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
GOODBYE = "\ninterrupted"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the words after `python -m emu_jax`; those of this process where None.

    Returns:
      The exit code: 0, 2 for the user's mistakes (one line on stderr), 130 after Ctrl-C. Other exceptions pass through.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what is as it should be
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(cli.overview())
            return 0 if words else 2
        with leaving_at_once():
            command = cli.load(words[0])
        command.main(words[1:])
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(GOODBYE, file=sys.stderr)
        return INTERRUPTED
    return 0


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ctrl-C ends the process on the spot: imports leave nothing to tidy, and one in C turns it into another error."""

    def leave(signum: int, frame: object) -> None:
        os.write(2, f"{GOODBYE}\n".encode())
        os._exit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():  # only the main one may change handlers
        yield
        return
    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def with_large_pages() -> None:
    """Begins the process anew, once, with glibc asking the kernel for large pages.

    XLA's CPU programs take their temporaries anew in every call: in pages of 4 KB, a quarter of a small model's train
    step goes into handing them out. glibc reads this at its start alone; who sets GLIBC_TUNABLES keeps what they set.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":
    with_large_pages()
    sys.exit(main())
