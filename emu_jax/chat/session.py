"""A conversation with a model, of this process or of a server; the terminal and the web page show it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emu_jax.io.files import write_bytes, write_text
from emu_jax.serving.client import Answer, Client, media_part

ContentPart = dict[str, Any]  # of a message, as in OpenAI's protocol
_IMAGE_OPTIONS = ("model", "seed", "sampler", "num_inference_steps", "guidance_scale")  # of requests without a text
_TEXT_ONLY = ("num_beams", "length_penalty", "prefill")  # options that answers with images refuse


@dataclasses.dataclass
class Session:
    """The messages so far.

    Attributes:
      options: of every request; `seed` of the next ones.
      folder: for the images of answers.
      pending: content parts that come before the next question.
    """

    client: Client
    folder: Path
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    messages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    pending: list[ContentPart] = dataclasses.field(default_factory=list)
    _answer: Answer | None = None

    def ask(self, question: Sequence[ContentPart], **options: Any) -> Iterator[str | Path]:
        """Ask a question after the pending parts; yield texts, and files of images, as they are generated.

        The question and its answer join the conversation when the answer is complete. A stopped answer is forgotten.

        Raises:
          UserError: the request is refused.
        """
        content = [*self.pending, *question]
        messages = [*self.messages, {"role": "user", "content": content}]
        yield from self._take(self.client.chat(messages, **self._merged(options)), content)

    def draw(self, text: str, **options: Any) -> Iterator[str | Path]:
        """Ask for an image as the answer."""
        return self.ask([text_part(text)], modalities=["image"], **options)

    def create(self, text: str, files: Sequence[Path] = (), **options: Any) -> Iterator[str | Path]:
        """Generate an image of a text, or of images and a text: an edit, or a blend of several images.

        The prompt is without the conversation, which text and images join when the result is complete.
        """
        content = [*map(media_part, files), *([text_part(text)] if text else [])]
        merged = self.options | options
        chosen = {name: merged[name] for name in _IMAGE_OPTIONS if name in merged}
        yield from self._take(self.client.images(text, files, **chosen), content)

    @property
    def stopped(self) -> bool:
        """True if the last answer was stopped."""
        return self._answer is not None and self._answer.stopped

    def stop(self) -> None:
        """Stop the answer that is being generated, from any thread."""
        if self._answer is not None:
            self._answer.stop()

    def start(self, system: str = "") -> None:
        """Forget the conversation; begin again with a system message if one is given."""
        self.messages = [{"role": "system", "content": system}] if system else []
        self.pending = []

    def save(self, path: Path) -> None:
        """Write the conversation as Markdown, with its images and videos in files next to it."""
        lines: list[str] = []
        count = 0
        for message in self.messages:
            lines.append(f"**{message['role']}**\n")
            content = message["content"]
            for part in [text_part(content)] if isinstance(content, str) else content:
                if part["type"] == "text":
                    lines.append(f"{part['text']}\n")
                    continue
                count += 1
                kind, data = _decoded(part)
                file = path.with_name(f"{path.stem}-{count}.{kind}")
                write_bytes(file, data)
                lines.append(f"![]({file.name})\n")
        write_text(path, "\n".join(lines))

    def _take(self, answer: Answer, content: list[ContentPart]) -> Iterator[str | Path]:
        """Yield the pieces of an answer, and add question and answer to the conversation at its end."""
        parts: list[ContentPart] = []
        self._answer = answer
        pieces = iter(answer)
        with contextlib.closing(pieces):  # type: ignore[type-var]
            for piece in pieces:
                if isinstance(piece, bytes):
                    parts.append(_image_part(piece))
                    yield self._store(piece)
                else:
                    _append_text(parts, piece)
                    yield piece
        if not answer.stopped:
            self.messages += [{"role": "user", "content": content}, {"role": "assistant", "content": parts}]
            self.pending = []

    def _merged(self, options: Mapping[str, Any]) -> dict[str, Any]:
        merged = self.options | dict(options)
        if "image" in merged.get("modalities", []):
            merged = {name: value for name, value in merged.items() if name not in _TEXT_ONLY}
        return merged

    def _store(self, image: bytes) -> Path:
        """Write an image of an answer to a new file, and return its path."""
        number = 1
        while (path := self.folder / f"emu-{number}.png").exists():
            number += 1
        write_bytes(path, image)
        return path


def text_part(text: str) -> ContentPart:
    """Return a text as a content part."""
    return {"type": "text", "text": text}


def question_parts(text: str, files: Sequence[Path] = (), *, named_files: bool = True) -> list[ContentPart]:
    """Return a question's text with its files: `<image>` is the next one of `files`, `<photo.jpg>` a named file.

    Files that no `<image>` takes come first. Without `named_files`, a name in brackets is text.

    Raises:
      UserError: a file cannot be read, or is neither an image nor a video.
    """
    marks = text.count("<image>")
    rest = list(files)
    parts = [media_part(rest.pop(0)) for _ in range(max(0, len(rest) - marks))]
    pattern = r"<(image|[^<>\n]+\.\w+)>" if named_files else r"<(image)>"
    for i, piece in enumerate(re.split(pattern, text)):
        if i % 2 == 0:
            if piece.strip():
                parts.append(text_part(piece.strip()))
        elif piece != "image":
            parts.append(media_part(Path(piece)))
        elif rest:
            parts.append(media_part(rest.pop(0)))
    return parts


def _append_text(answer: list[ContentPart], text: str) -> None:
    if answer and answer[-1]["type"] == "text":
        answer[-1]["text"] += text
    else:
        answer.append(text_part(text))


def _image_part(data: bytes) -> ContentPart:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}


def _decoded(part: ContentPart) -> tuple[str, bytes]:
    """The file type and the bytes of an image or video part."""
    head, _, data = part[part["type"]]["url"].partition(",")
    return head.removeprefix("data:").split(";")[0].partition("/")[2], base64.b64decode(data)
