"""`python -m emu_jax COMMAND`: run a command, and turn its end into an exit code."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from emu_jax import cli
from emu_jax.cli import compilation_cache
from emu_jax.cli.imports import INTERRUPTED, INTERRUPTED_MESSAGE, heavy_imports
from emu_jax.errors import UserError

BROKEN_PIPE = 141  # exit code 128 + SIGPIPE, as in shells
NO_CACHE = "--no-cache"  # accepted by every command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      argv: the words after `python -m emu_jax`; None takes those of this process.

    Returns:
      The exit code: 0, 2 for a mistake of the user or a failure of the system (one line on stderr), 130 after Ctrl-C,
      141 if the reader of the output has ended. Other exceptions are raised.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if NO_CACHE in words:
        words.remove(NO_CACHE)
        os.environ[compilation_cache.SWITCH] = "false"
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs warnings about normal situations
    try:
        _check_working_directory()
        try:
            return _run(words)
        finally:
            if sys.stdout is not None:  # None: it was closed before the start
                sys.stdout.flush()
    except KeyboardInterrupt:
        print(INTERRUPTED_MESSAGE, file=sys.stderr)
        return _end("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of the output has ended, as in `| head -1`
        _discard_output()
        return _end("the reader of the output has ended", BROKEN_PIPE)
    except Exception as error:
        message = describe(error)
        if message is None:
            if not _several_processes():
                raise
            traceback.print_exc()
            return _end(f"{type(error).__name__}: {error}", 1)
        if isinstance(error, OSError) and error.filename is None:  # the output itself cannot be written
            _discard_output()
        message = " ".join(message.split())
        with contextlib.suppress(OSError):
            print(f"error: {message}", file=sys.stderr)
        return _end(message, error.exit_code if isinstance(error, UserError) else 2)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(cli.overview())
        return 0 if words else 2
    with heavy_imports():
        command = cli.load(words[0])
    command.main(words[1:])
    return 0


def _end(text: str, code: int) -> int:
    """Return `code`; if this process is connected to others, end them too, with `text`."""
    if _several_processes():
        from emu_jax.waiting import end_run

        end_run(text, code=code)
    return code


def _several_processes() -> bool:
    """Return True if this process is connected to others. A command that has not imported JAX is not."""
    waits = sys.modules.get("emu_jax.waiting")
    return waits is not None and waits.several_processes()


def describe(error: Exception) -> str | None:
    """Return the message for an error that has its cause outside the program, or None for an error in the program."""
    text = str(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename is not None else "Cannot write the output: "
        return f"{file}{error.strerror or text}."
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"There is not enough memory. Use a smaller model, batch or image. {text}"
    if "backend" in text and text.startswith(("Unable to initialize backend", "Unknown backend")):
        return f"{text} Check JAX_PLATFORMS, which is {os.environ.get('JAX_PLATFORMS', 'not set')}."
    return None


def _check_working_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("The working directory was deleted. Change to another folder.") from None


def print_any_text() -> None:
    """Print characters that the encoding of the terminal does not have as escapes, as Python does on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Write what is still buffered for stdout nowhere, so that the interpreter does not fail on it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    print_any_text()
    compilation_cache.use_compilation_cache()
    sys.exit(main())
