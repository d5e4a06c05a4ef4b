"""The terminal: one line is a question or a command of `chat --help`; answers are printed as they are generated."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory

from emu_jax.chat.session import Session, question_parts
from emu_jax.chat.terminal_images import Protocol, escape_sequences, find_protocol
from emu_jax.errors import UserError
from emu_jax.serving.client import media_part

_PROMPT = "> "
_FILE_COMMANDS = ("/image", "/video", "/edit", "/save")
COMMANDS = ("/image", "/video", "/draw", "/edit", "/system", "/reset", "/seed", "/save", "/quit")


@dataclasses.dataclass
class Terminal:
    """A session whose answers are printed. `images`: how the terminal shows images, None if it does not."""

    session: Session
    images: Protocol | None = None

    def run(self, read: Callable[[], str]) -> None:
        """Take lines until /quit or the end of the input. An error or Ctrl-C ends an answer, not the conversation."""
        while True:
            try:
                line = read().strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                continue
            except UnicodeDecodeError:
                print("error: the line is not valid UTF-8")
                continue
            if line == "/quit":
                return
            try:
                self.take(line)
            except UserError as error:
                print(f"error: {error}")
            except KeyboardInterrupt:
                print("\nstopped")

    def take(self, line: str) -> None:
        """Handle one line: a command or a question.

        Raises:
          UserError: an unknown command, a file that cannot be read, or a request that is refused.
        """
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "":
                pass
            case "/image" | "/video":
                self.insert(rest)
            case "/draw":
                self.show(self.session.draw(_required(rest, "/draw TEXT")))
            case "/edit":
                file, text = _file_and_text(rest)
                self.show(self.session.create(text, [file]))
            case "/system":
                self.session.start(rest)
            case "/reset":
                self.session.start()
            case "/seed":
                self.set_seed(rest)
            case "/save":
                path = Path(rest or "chat.md")
                self.session.save(path)
                print(path)
            case _ if name.startswith("/"):
                raise UserError(f"There is no command {name}; there are {', '.join(COMMANDS[:-1])} and {COMMANDS[-1]}.")
            case _:
                self.show(self.session.ask(question_parts(line)))

    def show(self, answer: Iterator[str | Path]) -> None:
        """Print an answer as it is generated: its text, and its images with their paths."""
        with contextlib.closing(answer):  # type: ignore[type-var]
            for piece in answer:
                if isinstance(piece, Path):
                    if self.images is not None:
                        print(escape_sequences(piece.read_bytes(), self.images))
                    print(piece, flush=True)
                else:
                    print(printable(piece), end="", flush=True)
        print()

    def insert(self, name: str) -> None:
        """Insert an image or a video before the next question."""
        self.session.pending.append(media_part(Path(_required(name, "/image FILE"))))
        print(f"{name} comes before the next question")

    def set_seed(self, number: str) -> None:
        """Set the seed of the next answers."""
        if not re.fullmatch(r"-?\d{1,18}", number):
            raise UserError(f"A seed is an integer, not {number!r}.")
        self.session.options["seed"] = int(number)


class ChatCompleter(Completer):
    """Complete the names of commands, and paths after a command that takes a file."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=False)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield completions of the text before the cursor."""
        name, space, rest = document.text_before_cursor.partition(" ")
        if not space:
            for command in COMMANDS:
                if name.startswith("/") and command.startswith(name):
                    yield Completion(command, start_position=-len(name))
        elif name in _FILE_COMMANDS:
            yield from self._paths.get_completions(Document(rest, len(rest)), complete_event)


def read_line(history: Path, **keywords: Any) -> Callable[[], str]:
    """Return a function that reads a line with completion and a history file; plain `input` where no person types."""
    if not keywords and not (sys.stdin.isatty() and sys.stdout.isatty()):
        return lambda: input(_PROMPT)
    history.parent.mkdir(parents=True, exist_ok=True)
    prompt: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)), completer=ChatCompleter(), complete_while_typing=False, **keywords
    )
    return lambda: prompt.prompt(_PROMPT)


def image_protocol() -> Protocol | None:
    """Return how this process's terminal shows images."""
    return find_protocol(os.environ) if sys.stdout.isatty() else None


def printable(text: str) -> str:
    """Return text without control characters, with which a server could take over the terminal."""
    return re.sub(r"[^\n\t -~\u00a0-\U0010ffff]", "", text)


def _required(text: str, usage: str) -> str:
    if not text:
        raise UserError(f"The command needs more: {usage}")
    return text


def _file_and_text(rest: str) -> tuple[Path, str]:
    """Split the arguments of /edit; a name with spaces is in quotes."""
    try:
        words = shlex.split(rest) if rest.startswith(("'", '"')) else rest.split(maxsplit=1)
    except ValueError:
        words = []
    if len(words) < 2:
        raise UserError("The command needs an image and an instruction: /edit photo.jpg make it red")
    return Path(words[0]), " ".join(words[1:])
