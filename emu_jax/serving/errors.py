"""Errors that a client gets: an HTTP status, a sentence, and the field of the request that is at fault."""

from __future__ import annotations

import dataclasses
from typing import Any

CLIENT_CLOSED = 499  # nginx's status for a client that left; nobody reads it
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclasses.dataclass
class ApiError(Exception):
    """An answer that is an error; `param` names the field, `code` is what programs compare."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """Return the error in OpenAI's form."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_field(name: str, message: str) -> ApiError:
    """Return a 400 about one field; the message begins with its name."""
    return ApiError(400, f"{name} {message}", param=name)
