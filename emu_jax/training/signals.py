"""Stop a run at SIGTERM (preemption) or Ctrl-C after its current step, so that it can save a checkpoint."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Context manager that records the first SIGTERM or SIGINT; a second SIGINT interrupts immediately."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self
        # With several processes, jax.distributed handles SIGTERM itself and notifies the others.
        several = jax.process_count() > 1
        for number in (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._notify_all if several else self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def stops_after(self, step: int) -> bool:
        """Return True if the run must end after `step`; all processes get the same answer for the same step."""
        if jax.process_count() == 1:
            return self.received is not None
        # Processes receive a signal at different times. They must agree on a step, or some would wait indefinitely.
        return multihost_utils.reached_preemption_sync_point(step)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.received == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def _notify_all(self, number: int, frame: FrameType | None) -> None:
        self._record(number, frame)
        os.kill(os.getpid(), signal.SIGTERM)
