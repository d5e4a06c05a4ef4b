"""Stopping with grace: SIGTERM (preemption) and Ctrl-C let the step finish and the run save itself."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Within the `with`, the first SIGTERM or SIGINT is noted; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self
        # With several processes jax.distributed listens to SIGTERM itself, and tells the others.
        several = jax.process_count() > 1
        for number in (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._tell_all if several else self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def stops_after(self, step: int) -> bool:
        """Whether the run ends after `step`; several processes get the same answer for the same step."""
        if jax.process_count() == 1:
            return self.received is not None
        # Every process learns of a signal at another moment; they must agree, or some would wait for ever.
        return multihost_utils.reached_preemption_sync_point(step)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def _tell_all(self, number: int, frame: FrameType | None) -> None:
        self._note(number, frame)
        os.kill(os.getpid(), signal.SIGTERM)
