"""From the engine's events to the pieces of an answer: text as it comes, images in order, the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

import PIL.Image

from emu_jax.data.tokenizer import Tokenizer
from emu_jax.serving.errors import ApiError
from emu_jax.serving.jobs import Event, Failed, Finished, ImageReady, NewImage, NewTokens

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what an unfinished UTF-8 sequence decodes to; it has at most 3 bytes


@dataclasses.dataclass(frozen=True)
class TextPiece:
    text: str


@dataclasses.dataclass(frozen=True)
class ImagePiece:
    """The PNG files of one image: one for each copy that was requested."""

    files: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True)
class End:
    """The end of an answer, as in `jobs.Finished`."""

    reason: str
    text_tokens: int
    images: int
    reused_tokens: int


Piece = TextPiece | ImagePiece | End


class TextStream:
    """One text of an answer, from ids to text that will not change any more.

    White space at both ends is left out. What may be part of a character or of a stop sequence is held back.
    """

    def __init__(self, tokenizer: Tokenizer, *, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._ids: list[int] = []
        self._sent = ""
        self.stopped = False

    def feed(self, ids: Sequence[int]) -> str:
        """Return the new text after some more ids; `stopped` is set at a stop sequence."""
        self._ids += ids
        text = self._tokenizer.decode(self._ids).lstrip()
        found = [index for stop in self._stops if (index := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._send(text[: min(found)].rstrip())
        return self._send(self._settled(text))

    def close(self) -> str:
        """Return what was held back, at the end of the text."""
        return "" if self.stopped else self._send(self._tokenizer.decode(self._ids).strip())

    def _settled(self, text: str) -> str:
        unfinished = len(text) - len(text.rstrip(_INCOMPLETE))
        settled = text[: len(text) - min(3, unfinished)]
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(settled)), 0, -1):
                if settled.endswith(stop[:length]):
                    settled = settled[:-length]
                    break
        return settled.rstrip()

    def _send(self, text: str) -> str:
        if not text.startswith(self._sent):
            return ""
        new = text[len(self._sent) :]
        self._sent = text
        return new


async def pieces(
    events: asyncio.Queue[Event], *, tokenizer: Tokenizer, stops: Sequence[str] = (), copies: int = 1
) -> AsyncIterator[Piece]:
    """Yield an answer's pieces in order; `End` is the last. Text after an image waits until the image is there.

    A stop sequence ends it with an `End` of what came before; the caller then ends the job, and knows what was reused.

    Raises:
      ApiError: the request failed.
    """
    order: deque[TextPiece | int | End] = deque()
    images: dict[int, dict[int, bytes]] = {}
    stream = TextStream(tokenizer, stops=stops)
    tokens = placed = 0
    while True:
        match await events.get():
            case NewTokens(ids):
                for some in ((one,) for one in ids) if stops else (ids,):  # one by one: usage ends at the stop
                    tokens += len(some)
                    order.append(TextPiece(stream.feed(some)))
                    if stream.stopped:
                        order.append(End("stop", tokens, placed, reused_tokens=0))
                        break
            case NewImage(index):
                placed += 1
                order += [TextPiece(stream.close()), index]
                stream = TextStream(tokenizer, stops=stops)
            case ImageReady(index, copy, image):
                images.setdefault(index, {})[copy] = await asyncio.to_thread(png_bytes, image)
            case Finished(reason, text_tokens, count, reused):
                order += [TextPiece(stream.close()), End(reason, text_tokens, count, reused)]
            case Failed(status, message):
                raise ApiError(status, message, code="timeout" if status == 504 else None)
        while order:
            head = order[0]
            if isinstance(head, int):
                if len(images.get(head, ())) < copies:
                    break
                files = images.pop(head)
                yield ImagePiece(tuple(files[copy] for copy in range(copies)))
            elif isinstance(head, End):
                yield head
                return
            elif head.text:
                yield head
            order.popleft()


def png_bytes(image: PIL.Image.Image) -> bytes:
    """Return a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def call_soon(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event]) -> Callable[[Event], None]:
    """Return a function that puts an event into a queue from another thread."""

    def put(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits for it
            loop.call_soon_threadsafe(events.put_nowait, event)

    return put
