"""A small client of the server's protocol, with the standard library only: streamed chat answers, and images."""

from __future__ import annotations

import base64
import json
import mimetypes
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emu_jax.errors import UserError

_TIMEOUT_SECONDS = 600


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

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Iterator[str | bytes]:
        """Yield an answer piece by piece: text, and PNG files in order. Closing the iterator aborts the request.

        Raises:
          UserError: the server cannot be reached or refuses the request.
        """
        body = {"messages": messages, "stream": True, **options}
        with self._open("/chat/completions", json.dumps(body).encode(), "application/json") as response:
            for line in response:
                data = line.decode().removeprefix("data: ").strip()
                if data in ("", "[DONE]"):
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    raise UserError(f"The server ended the answer: {chunk['error']['message']}")
                for choice in chunk["choices"]:
                    yield from _pieces(choice["delta"].get("content"))

    def images(self, prompt: str, files: Sequence[Path] = (), **options: Any) -> list[bytes]:
        """Return PNG files: of a text, or edits of image files by a text.

        Raises:
          UserError: a file cannot be read, or the server refuses the request.
        """
        fields = {"prompt": prompt, **options}
        body, kind = _form(fields, files) if files else (json.dumps(fields).encode(), "application/json")
        with self._open("/images/edits" if files else "/images/generations", body, kind) as response:
            return [base64.b64decode(image["b64_json"]) for image in json.load(response)["data"]]

    def _open(self, route: str, body: bytes | None = None, kind: str = "") -> Any:
        headers = self._headers | ({"Content-Type": kind} if body is not None else {})
        request = urllib.request.Request(self._url + route, data=body, headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            raise UserError(f"The server refuses the request ({error.code}): {_message(error)}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"There is no server at {self._url} ({getattr(error, 'reason', error)}).") from None


def media_part(path: Path) -> dict[str, Any]:
    """Return the content part of an image or video file.

    Raises:
      UserError: the file cannot be read, or is neither by its name.
    """
    kind = mimetypes.guess_type(path.name)[0] or ""
    name = kind.partition("/")[0]
    if name not in ("image", "video"):
        raise UserError(f"{path} does not end like an image or a video.")
    url = f"data:{kind};base64,{base64.b64encode(_read(path)).decode()}"
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
    parts += [(f'name="image"; filename="{i}"', _read(path)) for i, path in enumerate(files)]
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return json.load(error)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
