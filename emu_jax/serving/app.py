"""The routes: OpenAI's chat, images and models, tokens, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from emu_jax.serving import jobs
from emu_jax.serving.answers import End, ImagePiece, Piece, TextPiece, call_soon, pieces
from emu_jax.serving.chat_request import ChatRequest, parse_chat, parse_messages
from emu_jax.serving.engine import Engine, QueueFullError, Status, UnavailableError
from emu_jax.serving.errors import CLIENT_CLOSED, ApiError, bad_field
from emu_jax.serving.fields import Fields, json_object
from emu_jax.serving.image_request import ImageRequest, parse_image_request
from emu_jax.serving.prepare import Preparation
from emu_jax.serving.responses import Reply, event, image_part, images_response
from emu_jax.serving.transport import (
    CountRequests,
    EventStream,
    Keys,
    error_response,
    read_form,
    read_json,
    until_gone,
)
from emu_jax.serving.usage import AnswerUsage, answer_usage, prompt_usage

Handler = Callable[[Request], Awaitable[Response]]
_RETRY_SECONDS = "2"


@dataclasses.dataclass(frozen=True)
class Service:
    """The handlers of all routes.

    Attributes:
      models: names that requests may give; the first is the default.
      created: when the server began, for /v1/models.
    """

    prepare: Preparation
    models: tuple[str, ...]
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @property
    def engine(self) -> Engine:
        return self.prepare.engine

    @property
    def num_image_tokens(self) -> int:
        return self.prepare.emu.config.causal_former.num_image_tokens

    # ---- routes

    async def health(self, request: Request) -> Response:
        """Answer 200 when every shape is compiled; 503 before, while draining, and after a failure of the device."""
        status = self.engine.status
        return JSONResponse({"status": status.value}, status_code=200 if status is Status.READY else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self.engine.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self.models]})

    async def one_model(self, request: Request) -> Response:
        return JSONResponse(self._model(self._model_name(request.path_params["name"])))

    async def tokenize(self, request: Request) -> Response:
        """Answer with the ids of a `prompt`, or of `messages` as a chat lays them out, with those of images."""
        body = await read_json(request, self.prepare.limits)
        fields = Fields(json_object(body), known=("model", "prompt", "messages", "add_special_tokens"))
        self._model_name(fields.text("model"))
        text, messages = fields.text("prompt"), fields.get("messages")
        if (text is None) == (messages is None):
            raise bad_field("prompt", "or messages must be given, and not both.")
        if text is not None:
            prompt = await asyncio.to_thread(self.prepare.text_prompt, text)
        else:
            prompt = await asyncio.to_thread(self.prepare.chat_prompt, parse_messages(messages))
        usage = prompt_usage(prompt, num_image_tokens=self.num_image_tokens)
        return JSONResponse(
            {
                "count": usage.tokens,
                "max_model_len": self.engine.config.context,
                "tokens": prompt.tokens.tolist(),
                "image_tokens": usage.image_tokens,
            }
        )

    async def chat(self, request: Request) -> Response:
        body = parse_chat(await read_json(request, self.prepare.limits))
        model = self._model_name(body.model)
        self._check_ready()
        asked = await asyncio.to_thread(self.prepare.chat, body, model=model)
        opens = asked.images is not None and asked.images.when is jobs.OpenImage.FIRST
        usage = prompt_usage(asked.prompt, num_image_tokens=self.num_image_tokens, opens_image=opens)
        reply = Reply(model, usage)
        answer = self._answer(request, asked, stops=body.stop)
        first = await anext(answer)  # errors before the first piece are responses, not parts of a stream
        if body.stream:
            return EventStream(self._chunks(reply, body, first, answer))
        *found, end = [piece async for piece in _joined(first, answer)]
        assert isinstance(end, End)
        return JSONResponse(reply.completion(found, end, self._usage(end), parts=body.images is not None))

    async def generate_images(self, request: Request) -> Response:
        body = parse_image_request(await read_json(request, self.prepare.limits))
        return await self._images(request, body, [])

    async def edit_images(self, request: Request) -> Response:
        """Generate images from a prompt of images and text: `image` files in order, then the instruction."""
        texts, uploads = await read_form(request, self.prepare.limits)
        body = parse_image_request(texts | dict.fromkeys((name for name, _ in uploads), ""), form=True)
        files = [data for name, data in uploads if name in ("image", "image[]")]
        if not files:
            raise bad_field("image", "is missing; send one or more files.")
        return await self._images(request, body, files)

    # ---- internals

    async def _images(self, request: Request, body: ImageRequest, files: Sequence[bytes]) -> Response:
        model = self._model_name(body.model)
        self._check_ready()
        asked = await asyncio.to_thread(self.prepare.images, body, files, model=model)
        answer = self._answer(request, asked, copies=body.copies)
        made: list[bytes] = []
        usage = AnswerUsage(0, 0)
        async for piece in answer:
            if isinstance(piece, ImagePiece):
                made += piece.files
            elif isinstance(piece, End):
                usage = self._usage(piece)
        assert asked.images is not None
        options = asked.images.options
        assert options.height is not None
        assert options.width is not None
        prompt = prompt_usage(asked.prompt, num_image_tokens=self.num_image_tokens, opens_image=True)
        size = (options.height, options.width)
        return JSONResponse(images_response(made, size=size, prompt=prompt, answer=usage))

    async def _answer(
        self, request: Request, asked: jobs.Request, *, stops: Sequence[str] = (), copies: int = 1
    ) -> AsyncIterator[Piece]:
        """Yield the pieces of an answer. Its job is aborted when the client leaves or the iterator is closed early."""
        events: asyncio.Queue[jobs.Event] = asyncio.Queue()
        deliver = call_soon(asyncio.get_running_loop(), events)
        try:
            job = self.engine.submit(asked, deliver)
        except QueueFullError:
            raise ApiError(
                429, "Too many requests wait already; try again.", code="queue_full",
                headers={"retry-after": _RETRY_SECONDS},
            ) from None  # fmt: skip
        except UnavailableError as error:
            raise _unavailable(str(error)) from None
        gone = asyncio.create_task(self._abort_when_gone(request, job, events))
        ended = False
        try:
            async for piece in pieces(events, tokenizer=self.prepare.emu.tokenizer, stops=stops, copies=copies):
                if isinstance(piece, End):
                    ended = True
                    self.engine.finish(job)
                    piece = dataclasses.replace(piece, reused_tokens=job.reused)
                yield piece
        except ApiError:
            ended = True
            raise
        finally:
            gone.cancel()
            if not ended:
                self.engine.abort(job)

    async def _abort_when_gone(self, request: Request, job: jobs.Job, events: asyncio.Queue[jobs.Event]) -> None:
        await until_gone(request)
        self.engine.abort(job)
        events.put_nowait(jobs.Failed(CLIENT_CLOSED, "The client left."))

    async def _chunks(
        self, reply: Reply, body: ChatRequest, first: Piece, answer: AsyncIterator[Piece]
    ) -> AsyncIterator[bytes]:
        """Yield the events of a stream."""
        yield event(reply.chunk({"role": "assistant", "content": ""}))
        try:
            async for piece in _joined(first, answer):
                if isinstance(piece, TextPiece):
                    yield event(reply.chunk({"content": piece.text}))
                elif isinstance(piece, ImagePiece):
                    parts = [image_part(data) for data in piece.files]
                    yield event(reply.chunk({"content": parts}, modality="image"))
                else:
                    yield event(reply.chunk({}, finish=piece.reason))
                    if body.include_usage:
                        yield event(reply.usage_chunk(self._usage(piece), piece))
            yield event("[DONE]")
        except ApiError as error:
            if error.status != CLIENT_CLOSED:
                yield event(error.body())

    def _usage(self, end: End) -> AnswerUsage:
        return answer_usage(end.text_tokens, end.images, num_image_tokens=self.num_image_tokens)

    def _model_name(self, name: str | None) -> str:
        if name is None:
            return self.models[0]
        if name not in self.models:
            raise ApiError(
                404, f"There is no model {name!r}; there are {', '.join(self.models)}.", param="model",
                code="model_not_found",
            )  # fmt: skip
        return name

    def _model(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "emu_jax",
            "max_model_len": self.engine.config.context,
        }

    def _check_ready(self) -> None:
        if self.engine.status is not Status.READY:
            raise _unavailable(f"The server is {self.engine.status.value}.")


def create_app(
    service: Service, *, keys: Sequence[str] = (), origins: Sequence[str] = ("*",), stop_engine: bool = True
) -> ASGIApp:
    """Return the application. CORS is outermost: it answers before keys are checked, and on errors too."""
    table: list[tuple[str, Handler, str]] = [
        ("/health", service.health, "GET"),
        ("/metrics", service.metrics, "GET"),
        ("/v1/models", service.list_models, "GET"),
        ("/v1/models/{name:path}", service.one_model, "GET"),
        ("/v1/chat/completions", service.chat, "POST"),
        ("/v1/images/generations", service.generate_images, "POST"),
        ("/v1/images/edits", service.edit_images, "POST"),
        ("/tokenize", service.tokenize, "POST"),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        if stop_engine:
            await asyncio.to_thread(service.engine.stop)

    app = Starlette(
        routes=[Route(path, _guarded(handler), methods=[method]) for path, handler, method in table],
        middleware=[
            Middleware(CountRequests, metrics=service.engine.metrics, routes=tuple(path for path, _, _ in table)),
            Middleware(Keys, keys=keys),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _unforeseen},
        lifespan=lifespan,
    )
    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["retry-after"],
    )


def _guarded(handler: Handler) -> Handler:
    """Turn an `ApiError` into its answer."""

    @functools.wraps(handler)
    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            return error_response(error)
        except ClientDisconnect:  # before its body was complete
            return Response(status_code=CLIENT_CLOSED)

    return guarded


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer unknown routes and methods in OpenAI's form."""
    assert isinstance(error, HTTPException)
    reason = f"{request.method} {request.url.path}: {error.detail}"
    return error_response(ApiError(error.status_code, reason, headers=dict(error.headers or {})))


async def _unforeseen(request: Request, error: Exception) -> Response:
    """Answer an unexpected error, which uvicorn logs, with a 500."""
    return error_response(ApiError(500, "The server failed at this request; its log says why."))


async def _joined(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece


def _unavailable(message: str) -> ApiError:
    return ApiError(503, message, code="unavailable", headers={"retry-after": _RETRY_SECONDS})
