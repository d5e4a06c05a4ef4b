"""A model in this process behind the interface of `ServerClient`: the same requests, answers and engine, no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emu_jax.errors import UserError
from emu_jax.generation.chat import ChatStyle
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.serving.answers import End, ImagePiece, TextPiece, call_soon, pieces
from emu_jax.serving.build import create_device, create_engine, suggested_chunk, trained_size
from emu_jax.serving.chat_request import parse_chat
from emu_jax.serving.client import read_media
from emu_jax.serving.config import EngineConfig, Limits
from emu_jax.serving.engine import Engine, QueueFullError, Status, UnavailableError
from emu_jax.serving.errors import CLIENT_CLOSED, ApiError
from emu_jax.serving.image_request import parse_image_request
from emu_jax.serving.jobs import Event, Failed, Job, Request
from emu_jax.serving.prepare import Preparation

_POLL_SECONDS = 0.05


class LocalAnswer:
    """An answer, piece by piece: text, and PNG files in order. It begins when it is iterated."""

    def __init__(self, prepare: Preparation, request: Request, *, stops: Sequence[str] = (), copies: int = 1) -> None:
        self._prepare, self._request, self._stops, self._copies = prepare, request, stops, copies
        self._job: Job | None = None
        self.stopped = False

    def __iter__(self) -> Iterator[str | bytes]:
        """Yield the pieces. The request is aborted when the iterator is closed before its end.

        Raises:
          UserError: the engine refuses the request or fails.
        """
        engine, events = self._prepare.engine, asyncio.Queue[Event]()
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            deliver = call_soon(loop, events)
            try:
                self._job = job = engine.submit(self._request, deliver)
            except (QueueFullError, UnavailableError) as error:
                raise UserError(str(error) or "Too many requests wait already; try again.") from None
            self._deliver = deliver
            complete = False
            try:
                found = pieces(events, tokenizer=self._prepare.emu.tokenizer, stops=self._stops, copies=self._copies)
                while not self.stopped:
                    piece = _next(loop, found)
                    if isinstance(piece, End):
                        complete = True
                        engine.finish(job)
                        return
                    yield from [piece.text] if isinstance(piece, TextPiece) else piece.files
            except ApiError as error:
                complete = error.status != CLIENT_CLOSED
                if complete:
                    raise UserError(error.message) from None
            finally:
                if not complete:
                    engine.abort(job)

    def stop(self) -> None:
        """End the answer, from any thread: its slot is free before the device's next step."""
        self.stopped = True
        if self._job is not None:
            self._prepare.engine.abort(self._job)
            self._deliver(Failed(CLIENT_CLOSED, "The answer was stopped."))


class LocalClient:
    """Requests to a model in this process. The engine compiles all programs first, and none later."""

    def __init__(
        self,
        emu: EmuPipeline,
        *,
        name: str,
        system: str = "",
        style: ChatStyle = ChatStyle.TRAINING,
        slots: int = 1,
        max_beams: int = 1,
    ) -> None:
        """Start the engine; `emu.params` moves to it. `system`: the system message of chats without one."""
        context = emu.config.decoder.max_length
        chunk = suggested_chunk(context)
        config = EngineConfig(
            slots=slots,
            context=context // chunk * chunk,
            prefill_chunk=chunk,
            vision_batch=1,
            max_beams=max_beams,
            sampler_rows=1,
            max_sampler_steps=1000,
            image_sizes=(trained_size(emu),) if emu.has_visual_decoder else (),
            timeout=3600,
        )
        device = create_device(emu, config, {name: emu.params})
        emu.params = None  # the device has them layer by layer
        safety = emu.safety_checker if emu.has_visual_decoder else None
        self.engine: Engine = create_engine(emu, config, device, safety=safety)
        self._prepare = Preparation(emu, self.engine, Limits(), system=system, style=style)
        self._name = name
        self.engine.start()

    def wait_until_ready(self) -> None:
        """Wait until all programs are compiled.

        Raises:
          UserError: the device cannot be used.
        """
        while self.engine.status is Status.STARTING:
            time.sleep(_POLL_SECONDS)
        if self.engine.status is Status.FAILED:
            raise UserError("The model cannot be used on this device; the log above has the reason.")

    def models(self) -> list[str]:
        """Return the name of the model."""
        return [self._name]

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> LocalAnswer:
        """Return the answer to messages as in /v1/chat/completions.

        Raises:
          UserError: the request is refused.
        """
        with _user_errors():
            body = parse_chat({"messages": list(messages), **options})
            return LocalAnswer(self._prepare, self._prepare.chat(body, model=self._name), stops=body.stop)

    def images(self, prompt: str, files: Sequence[Path] = (), **options: Any) -> LocalAnswer:
        """Return PNG files: of a text, or of image files and a text.

        Raises:
          UserError: a file cannot be read, or the request is refused.
        """
        with _user_errors():
            body = parse_image_request({"prompt": prompt, **options})
            request = self._prepare.images(body, [read_media(path) for path in files], model=self._name)
            return LocalAnswer(self._prepare, request, copies=body.copies)

    def close(self) -> None:
        """End the engine; requests that are not complete fail."""
        self.engine.stop()


def _next(loop: asyncio.AbstractEventLoop, found: Any) -> TextPiece | ImagePiece | End:
    """Return the next piece; an interrupt leaves no task behind."""
    task = loop.create_task(found.__anext__())
    try:
        return loop.run_until_complete(task)
    except BaseException:
        task.cancel()
        with contextlib.suppress(BaseException):
            loop.run_until_complete(task)
        raise


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """Raise the errors of requests as UserError."""
    try:
        yield
    except ApiError as error:
        raise UserError(error.message) from None
