"""A small client of the server's protocol, with the standard library only: streamed chat answers, and images."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import mimetypes
import os
import socket
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from emu_jax.errors import UserError

_TIMEOUT_SECONDS = 600

Connected = Callable[[socket.socket], None]


class Answer(Protocol):
    """An answer, piece by piece: text, and PNG files in order. It begins when it is iterated."""

    stopped: bool

    def __iter__(self) -> Iterator[str | bytes]:
        """Yield the pieces. Closing the iterator before its end aborts the request."""
        ...

    def stop(self) -> None:
        """End the answer, from any thread."""
        ...


class Client(Protocol):
    """Requests to a model: `ServerClient`, or `serving.local.LocalClient`."""

    def models(self) -> list[str]:
        """Return the names of the models; the first is the default."""
        ...

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Answer:
        """Return the answer to messages, with options as in /v1/chat/completions."""
        ...

    def images(self, prompt: str, files: Sequence[Path] = (), **options: Any) -> Answer:
        """Return PNG files: of a text, or of image files and a text."""
        ...

    def close(self) -> None:
        """End the model's work."""
        ...


class ServerAnswer:
    """An answer of a server."""

    def __init__(self, send: Callable[[Connected], Any], read: Callable[[Any], Iterator[str | bytes]]) -> None:
        """`send` makes the request and returns its response, `read` yields the pieces of a response."""
        self._send, self._read = send, read
        self._connection: socket.socket | None = None
        self.stopped = False

    def __iter__(self) -> Iterator[str | bytes]:
        """Yield the pieces.

        Raises:
          UserError: the server cannot be reached, refuses the request or ends the connection.
        """
        try:
            with self._send(self._connected) as response:
                for piece in self._read(response):
                    if self.stopped:
                        return
                    yield piece
        except UserError:
            if not self.stopped:
                raise
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            if not self.stopped:
                raise UserError(f"The connection to the server ended before the answer did ({error}).") from None

    def stop(self) -> None:
        """End the answer, from any thread: the connection is shut down, at which the server aborts the request."""
        self.stopped = True
        if self._connection is not None:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)

    def _connected(self, connection: socket.socket) -> None:
        self._connection = connection
        if self.stopped:
            self.stop()


class ServerClient:
    """Requests to a server at `base_url`, such as http://127.0.0.1:8000/v1."""

    def __init__(self, base_url: str, *, api_key: str | None = None) -> None:
        """Raise UserError for a URL of another form."""
        if not base_url.startswith(("http://", "https://")):
            raise UserError(f"The server's URL must begin with http:// or https://, not {base_url!r}.")
        self._url = base_url.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}

    def models(self) -> list[str]:
        """Return the names of the models; the first is the default."""
        with self._open("/models") as response:
            return [model["id"] for model in json.load(response)["data"]]

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> ServerAnswer:
        """Return the answer to messages, with options as in /v1/chat/completions."""
        body = json.dumps({"messages": messages, "stream": True, **options}).encode()
        return ServerAnswer(
            lambda connected: self._open("/chat/completions", body, "application/json", connected=connected), _stream
        )

    def images(self, prompt: str, files: Sequence[Path] = (), **options: Any) -> ServerAnswer:
        """Return PNG files: of a text, or edits of image files by a text.

        Raises:
          UserError: a file cannot be read.
        """
        fields = {"prompt": prompt, **options}
        body, kind = _form(fields, files) if files else (json.dumps(fields).encode(), "application/json")
        route = "/images/edits" if files else "/images/generations"
        return ServerAnswer(lambda connected: self._open(route, body, kind, connected=connected), _files)

    def close(self) -> None:
        """Do nothing: the server continues for its other clients."""

    def _open(
        self, route: str, body: bytes | None = None, kind: str = "", *, connected: Connected = lambda _: None
    ) -> Any:
        headers = self._headers | ({"Content-Type": kind} if body is not None else {})
        request = urllib.request.Request(self._url + route, data=body, headers=headers)
        try:
            return urllib.request.build_opener(_Handler(connected)).open(request, timeout=_TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            raise UserError(f"The server refuses the request ({error.code}): {_message(error)}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"There is no server at {self._url} ({getattr(error, 'reason', error)}).") from None


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Report the socket of a request before the request is sent, so that another thread can end it at any time."""

    def __init__(self, connected: Connected) -> None:
        super().__init__()
        self._connected = connected

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_reporting(http.client.HTTPConnection, self._connected), req)

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_reporting(http.client.HTTPSConnection, self._connected), req)


def _reporting(kind: type[http.client.HTTPConnection], connected: Connected) -> Any:
    """Return the class of connections with a report when they are connected."""

    class Connection(kind):  # type: ignore[valid-type, misc]
        def connect(self) -> None:
            super().connect()
            connected(self.sock)

    return Connection


def _stream(response: Any) -> Iterator[str | bytes]:
    """Yield the pieces of a streamed chat completion."""
    for line in response:
        data = line.decode().removeprefix("data: ").strip()
        if data in ("", "[DONE]"):
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            raise UserError(f"The server ended the answer: {chunk['error']['message']}")
        for choice in chunk["choices"]:
            yield from _pieces(choice["delta"].get("content"))


def _files(response: Any) -> Iterator[str | bytes]:
    """Yield the files of an answer of the image routes."""
    for image in json.load(response)["data"]:
        yield base64.b64decode(image["b64_json"])


def media_part(path: Path) -> dict[str, Any]:
    """Return the content part of an image or video file.

    Raises:
      UserError: the file cannot be read, or is neither by its name.
    """
    kind = mimetypes.guess_type(path.name)[0] or ""
    name = kind.partition("/")[0]
    if name not in ("image", "video"):
        raise UserError(f"{path} does not end like an image or a video.")
    url = f"data:{kind};base64,{base64.b64encode(read_media(path)).decode()}"
    return {"type": f"{name}_url", f"{name}_url": {"url": url}}


def _pieces(content: Any) -> Iterator[str | bytes]:
    parts: list[Any] = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    for part in parts:
        if part["type"] == "image_url":
            yield base64.b64decode(part["image_url"]["url"].partition(",")[2])
        elif part["text"]:
            yield part["text"]


def _form(fields: Mapping[str, Any], files: Sequence[Path]) -> tuple[bytes, str]:
    """A multipart body and its content type."""
    boundary = uuid.uuid4().hex
    parts = [(f'name="{name}"', str(value).encode()) for name, value in fields.items()]
    parts += [(f'name="image"; filename="{i}"', read_media(path)) for i, path in enumerate(files)]
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def read_media(path: Path) -> bytes:
    """Return the bytes of a file. Raise UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return json.load(error)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
