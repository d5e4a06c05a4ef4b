"""Chat with a running server in the terminal: `python -m emu_jax chat --base-url URL`.

    python -m emu_jax chat --base-url http://127.0.0.1:8000/v1
    python -m emu_jax chat --base-url https://emu.example/v1 --api-key-file key.txt --model emu

Type a question; its answer is printed as it arrives, and Ctrl-C stops it. <photo.jpg> in a line inserts an image.

    /image FILE, /video FILE    insert a file into the next question
    /draw TEXT                  answer with an image
    /edit FILE TEXT             an image from an image and an instruction
    /system TEXT                set the system message, and start again
    /seed N                     of the next answers
    /save FILE.md               write the conversation as Markdown, with its images next to it
    /reset, /quit               start again, end
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.errors import UserError
from emu_jax.io.files import write_bytes, write_text
from emu_jax.serving.client import ServerClient, media_part

Messages = list[dict[str, Any]]


def run(argv: list[str]) -> None:
    """Parse the options of `chat` with --base-url, and talk until /quit."""
    parser = ArgumentParser("emu_jax.cli.chat", __doc__)
    parser.add_argument("--base-url", required=True, metavar="URL", help="of the server, such as http://HOST:8000/v1")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with the key")
    parser.add_argument("--model", help="name of the model (default: the server's first)")
    parser.add_argument("--max-tokens", type=int, help="text tokens of an answer (default: what the context has left)")
    parser.add_argument("--temperature", type=float, default=0.0, help="default: 0, the most likely token")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="folder for images (default: here)")
    arguments = parser.parse_args(argv)
    client = ServerClient(arguments.base_url, api_key=_key(arguments.api_key_file))
    options: dict[str, Any] = {"model": arguments.model or client.models()[0], "temperature": arguments.temperature}
    if arguments.max_tokens is not None:
        options["max_tokens"] = arguments.max_tokens
    print(f"{options['model']} at {arguments.base_url}; /quit ends")
    conversation = Conversation(client, options, arguments.output)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line == "/quit":
            return
        try:
            conversation.take(line)
        except UserError as error:  # the conversation continues without this line
            print(f"error: {error}")


@dataclasses.dataclass
class Conversation:
    """The messages so far. `pending` are content parts of the next question."""

    client: ServerClient
    options: dict[str, Any]
    folder: Path
    messages: Messages = dataclasses.field(default_factory=list)
    pending: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    seed: int = 0

    def take(self, line: str) -> None:
        """Handle one line: a command or a question.

        Raises:
          UserError: an unknown command, a file that cannot be read, or an answer that the server refuses.
        """
        if not line:
            return
        if not line.startswith("/"):
            self.ask(line)
            return
        name, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/image": self.insert, "/video": self.insert, "/draw": self.draw, "/edit": self.edit,
            "/system": self.start, "/reset": lambda _: self.start(""), "/seed": self.set_seed, "/save": self.save,
        }  # fmt: skip
        if name not in commands:
            raise UserError(f"There is no command {name}; there are {', '.join(commands)} and /quit.")
        commands[name](rest.strip())

    def ask(self, text: str, **options: Any) -> None:
        """Send a question and print its answer as it arrives; Ctrl-C stops the answer, which is then forgotten."""
        question = {"role": "user", "content": [*self.pending, *_parts(text)]}
        answer: list[dict[str, Any]] = []
        stream = self.client.chat([*self.messages, question], seed=self.seed, **(self.options | options))
        try:
            for piece in stream:
                if isinstance(piece, bytes):
                    print(f"{self.store(piece)}", flush=True)
                    answer.append(_image(piece))
                else:
                    print(printable(piece), end="", flush=True)
                    _append_text(answer, piece)
        except KeyboardInterrupt:
            print("\nstopped")
            return
        finally:
            stream.close()  # type: ignore[attr-defined]
        print()
        self.messages += [question, {"role": "assistant", "content": answer}]
        self.pending = []

    def insert(self, name: str) -> None:
        self.pending.append(media_part(Path(name)))
        print(f"{name} comes before the next question")

    def draw(self, text: str) -> None:
        self.ask(text, modalities=["image"])

    def edit(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        for image in self.client.images(text, [Path(name)], model=self.options["model"], seed=self.seed):
            print(self.store(image))

    def start(self, system: str) -> None:
        self.messages = [{"role": "system", "content": system}] if system else []
        self.pending = []

    def set_seed(self, number: str) -> None:
        if not re.fullmatch(r"-?\d+", number):
            raise UserError(f"A seed is an integer, not {number!r}.")
        self.seed = int(number)

    def save(self, name: str) -> None:
        """Write the conversation as Markdown, with its images in files next to it."""
        path = Path(name or "chat.md")
        lines: list[str] = []
        for message in self.messages:
            lines.append(f"**{message['role']}**\n")
            content = message["content"]
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                if part["type"] == "text":
                    lines.append(f"{part['text']}\n")
                    continue
                kind, data = _decoded(part)
                file = path.with_name(f"{path.stem}-{sum(line.startswith('![') for line in lines) + 1}.{kind}")
                write_bytes(file, data)
                lines.append(f"![]({file.name})\n")
        write_text(path, "\n".join(lines))
        print(path)

    def store(self, image: bytes) -> Path:
        """Write an image of an answer to a new file, and return its path."""
        number = 1
        while (path := self.folder / f"emu-{number}.png").exists():
            number += 1
        write_bytes(path, image)
        return path


def printable(text: str) -> str:
    """Return text without control characters, with which a server could take over the terminal."""
    return re.sub(r"[^\n\t -~\u00a0-\U0010ffff]", "", text)


def _parts(text: str) -> list[dict[str, Any]]:
    """A question's text, with files in angle brackets as images."""
    parts: list[dict[str, Any]] = []
    for i, piece in enumerate(re.split(r"<([^<>\n]+\.\w+)>", text)):
        if i % 2:
            parts.append(media_part(Path(piece)))
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def _append_text(answer: list[dict[str, Any]], text: str) -> None:
    if answer and answer[-1]["type"] == "text":
        answer[-1]["text"] += text
    else:
        answer.append({"type": "text", "text": text})


def _image(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}


def _decoded(part: dict[str, Any]) -> tuple[str, bytes]:
    """The file type and the bytes of an image or video part."""
    head, _, data = part[part["type"]]["url"].partition(",")
    return head.removeprefix("data:").split(";")[0].partition("/")[2], base64.b64decode(data)


def _key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").split()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        raise UserError(f"The key file {path} cannot be read, or holds no key.") from None
