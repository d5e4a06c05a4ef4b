"""`python -m emu_jax COMMAND`: run a command, and turn its end into an exit code."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence

from emu_jax import cli
from emu_jax.cli import compilation_cache
from emu_jax.cli.imports import INTERRUPTED, INTERRUPTED_MESSAGE, heavy_imports
from emu_jax.errors import UserError

NO_CACHE = "--no-cache"  # accepted by every command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      argv: the words after `python -m emu_jax`; None takes those of this process.

    Returns:
      The exit code: 0, 2 for a mistake of the user (one line on stderr), 130 after Ctrl-C. Other exceptions are raised.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if NO_CACHE in words:
        words.remove(NO_CACHE)
        os.environ[compilation_cache.SWITCH] = "false"
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs warnings about normal situations
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(cli.overview())
            return 0 if words else 2
        with heavy_imports():
            command = cli.load(words[0])
        command.main(words[1:])
    except UserError as error:
        text, code = " ".join(str(error).split()), error.exit_code
        print(f"error: {text}", file=sys.stderr)
    except KeyboardInterrupt:
        text, code = "interrupted", INTERRUPTED
        print(INTERRUPTED_MESSAGE, file=sys.stderr)
    except Exception as error:
        if not _several_processes():
            raise
        text, code = f"{type(error).__name__}: {error}", 1
        traceback.print_exc()
    else:
        return 0
    if _several_processes():
        from emu_jax.waiting import end_run

        end_run(text, code=code)
    return code


def _several_processes() -> bool:
    """Return True if this process is connected to others. A command that has not imported JAX is not."""
    waits = sys.modules.get("emu_jax.waiting")
    return waits is not None and waits.several_processes()


def use_huge_pages() -> None:
    """Restart the process once with a glibc that asks the kernel for huge pages.

    XLA's CPU programs allocate their temporary buffers again in every call. With pages of 4 KB, this takes a quarter of
    a small model's train step. glibc reads the setting only at its start. A GLIBC_TUNABLES of the user is not changed.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":
    use_huge_pages()
    compilation_cache.use_compilation_cache()
    sys.exit(main())
