"""The HTTP server: uvicorn, ended by SIGTERM after the requests that it has are answered."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from emu_jax.errors import UserError
from emu_jax.serving.engine import Engine

_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 2048  # connections that wait to be accepted; the default of uvicorn

log = logging.getLogger(__name__)


class QuietServer(uvicorn.Server):
    """Return from `run` after a signal. uvicorn raises the signal again, which ends the process before cleanup."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


class Server(QuietServer):
    """One SIGTERM (or Ctrl-C) drains: no new requests, the others are completed. A second one ends at once."""

    def __init__(self, app: ASGIApp, engine: Engine, *, drain_seconds: int) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=drain_seconds,
        )
        super().__init__(config)
        self._engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        log.warning("draining: %d requests are being completed", self._engine.in_flight)
        self._engine.drain()
        self.force_exit = self.should_exit
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises:
      UserError: the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"The server cannot listen on {host}:{port} ({reason}).") from None
    return bound
