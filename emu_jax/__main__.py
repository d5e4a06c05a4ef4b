"""`python -m emu_jax COMMAND`: finds the command, runs it, and turns its end into an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from emu_jax import cli
from emu_jax.errors import UserError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the words after `python -m emu_jax`; those of this process where None.

    Returns:
      The exit code: 0, 2 for the user's mistakes (one line on stderr), 130 after Ctrl-C. Other exceptions pass through.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(cli.overview())
            return 0 if words else 2
        cli.load(words[0]).main(words[1:])
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
