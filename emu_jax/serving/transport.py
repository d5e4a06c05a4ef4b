"""HTTP below the routes: bounded bodies, clients that leave, keys, streams, and counting requests."""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emu_jax.errors import UserError
from emu_jax.serving.config import Limits
from emu_jax.serving.errors import ApiError
from emu_jax.serving.metrics import Metrics

_MAX_FIELD = 2**20  # bytes of a form's text
_OPEN_PATHS = ("/health", "/metrics")  # for probes and scrapers, without a key


def error_response(error: ApiError) -> Response:
    """Return an error in OpenAI's form."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body, read no further than its limit.

    Raises:
      ApiError: it is longer (413).
    """
    most = limits.max_body_bytes
    too_long = ApiError(413, f"The body is longer than {most} bytes.", code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_long
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise too_long
    return bytes(body)


async def read_json(request: Request, limits: Limits) -> Any:
    """Return the body's JSON.

    Raises:
      ApiError: it is too long (413), or no JSON.
    """
    body = await read_body(request, limits)
    try:
        value = json.loads(body)
        _check_texts(value)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON ({error}).") from None
    return value


async def read_form(request: Request, limits: Limits) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
    """Return the texts of a multipart form by name, and its files with their fields' names.

    Raises:
      ApiError: it is too long (413), or no form.
    """
    body = await read_body(request, limits)

    async def parts() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(request.headers, parts(), max_files=limits.max_media, max_part_size=_MAX_FIELD)
        form = await parser.parse()
        texts = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        files = [(name, await value.read()) for name, value in form.multi_items() if not isinstance(value, str)]
        await form.close()
    except (MultiPartException, KeyError, ValueError) as error:
        raise ApiError(400, f"The body is not a multipart form ({getattr(error, 'message', error)}).") from None
    return texts, files


def _check_texts(value: Any) -> None:
    """Raise UnicodeEncodeError (a ValueError) for half of a surrogate pair, which JSON can write."""
    if isinstance(value, str):
        if not value.isascii():
            value.encode()
    elif isinstance(value, list):
        for item in value:
            _check_texts(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_texts(name)
            _check_texts(item)


async def until_gone(request: Request) -> None:
    """Return when the client has left. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, each sent as soon as it is there; the iterator is closed when the client leaves."""

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        self.events, self.status_code, self.background = events, 200, None
        self.init_headers({"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for data in self.events:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Keys:
    """Middleware that asks for one of the keys of a file; without a file everything is open."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[str]) -> None:
        self._app, self._keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys or scope["path"] in _OPEN_PATHS or self._known(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "The request has no valid key; send Authorization: Bearer KEY.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        await error_response(error)(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = key.strip().encode("latin-1", "replace")
        matches = [hmac.compare_digest(given, known) for known in self._keys]  # all, in constant time
        return scheme.lower() == "bearer" and any(matches)


class CountRequests:
    """Middleware that counts requests by route and status."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, routes: Sequence[str]) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.requests.labels(route, str(status)).inc()


def read_keys(path: Path | None) -> tuple[str, ...]:
    """Return the keys of a file, one on each line; lines that begin with # are comments.

    Raises:
      UserError: the file cannot be read or holds no key.
    """
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The key file {path} cannot be read ({error}).") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise UserError(f"The key file {path} holds no key; write one on each line.")
    return keys
