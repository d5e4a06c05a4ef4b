"""Time limits for waits on the other processes of a run.

A process that waits in a collective program or in a barrier is inside compiled code, which Python cannot interrupt. So
a thread of each process publishes the wait that the process is in, through the key-value store of JAX's coordination
service, and ends the process with one line if a wait exceeds its limit, if a signal to stop finds the process waiting,
or if another process ends with an error. Use `waiting` around every call that needs the other processes.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the client of the coordination service has no public name

from emu_jax.bounds import Checked, Count
from emu_jax.errors import UserError

EXIT_CODE = 1  # of a wait that ended; tools/tpu/worker.sh starts the run again
_DIRECTORY = "emu_jax/waits/"
_FAILURE = "emu_jax/failure"
_PREEMPTION = "RECEIVED_PREEMPTION_NOTICE"  # set by JAX when a process of the run receives SIGTERM
_SECONDS_BETWEEN_BEATS = 1.0


class LostProcessError(UserError):
    """Another process of the run has ended or cannot be reached. Another attempt may succeed."""

    exit_code = EXIT_CODE


@dataclasses.dataclass(frozen=True)
class WaitConfig(Checked):
    """Time limits for waits on the other processes of a run.

    Attributes:
      seconds: limit of each wait. It must exceed the time by which one process can be slower than another, for example
        to compile the step.
      seconds_after_signal: limit of a wait after SIGTERM or Ctrl-C, so that a run whose processes do not answer ends.
    """

    seconds: Count = 1800
    seconds_after_signal: Count = 120


@dataclasses.dataclass(frozen=True)
class _Position:
    """The last wait of a process.

    Attributes:
      count: number of waits that the process has entered; the same wait has the same number on every process.
      name: of the last one.
      since: time at which it began, by `time.monotonic`.
      limit: seconds that it may take; None after it has ended.
    """

    count: int
    name: str
    since: float
    limit: float | None


class _Watch:
    """The waits of this process, and the thread that limits them."""

    def __init__(self, client: Any, *, process: int, processes: int) -> None:
        self.limits = WaitConfig()
        self.position = _Position(0, "start", time.monotonic(), None)
        self._client, self.process, self._processes = client, process, processes
        self._signals, written = socket.socketpair()
        for end in (self._signals, written):
            end.setblocking(False)
        self._signaled: float | None = None
        self.lost = False
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
            self._written = written  # keeps the descriptor open
        for target in (self._publish, self._watch):
            threading.Thread(target=target, name=f"emu_jax_waits{target.__name__}", daemon=True).start()

    def missing(self) -> str:
        """Describe the processes that are not in the wait of this process; "" if there are none.

        A process whose heartbeat does not change between two readings does not respond.
        """
        own = self.position
        before = self._published()
        time.sleep(4 * _SECONDS_BETWEEN_BEATS)
        after = self._published()
        found = []
        for process in range(self._processes):
            if process == self.process:
                continue
            if process not in after or before.get(process) == after[process]:
                last = f", its last wait was {after[process][1]!r}" if process in after else ""
                found.append(f"process {process} does not respond{last}")
            elif after[process][0] < own.count:
                found.append(f"process {process} is not there yet, its last wait was {after[process][1]!r}")
        return "; ".join(found)

    def wait_at_barrier(self) -> None:
        """Wait until all processes are in the same wait as this one. The thread ends the wait at its limit."""
        position = self.position
        assert position.limit is not None
        seconds = position.limit + 60
        self._client.wait_at_barrier(f"emu_jax/{position.count}/{position.name}", round(seconds * 1000))

    def exchange(self, value: str) -> list[str]:
        """Return the values of all processes."""
        folder = f"emu_jax/values/{self.position.count}/"
        self._client.key_value_set(f"{folder}{self.process:08d}", value)
        self.wait_at_barrier()
        return [found for _, found in sorted(self._client.key_value_dir_get(folder))]

    def fail(self, message: str, *, code: int) -> None:
        """Report to the other processes that this process ends."""
        with contextlib.suppress(Exception):  # the first report counts, and the service may have ended
            self._client.key_value_set(_FAILURE, json.dumps([self.process, message, code]))

    def _publish(self) -> None:
        """Publish the position of this process with a number that changes, as its heartbeat."""
        for beat in itertools.count():
            position = self.position
            value = json.dumps([position.count, position.name, beat])
            try:
                self._client.key_value_set(f"{_DIRECTORY}{self.process}", value, allow_overwrite=True)
            except Exception:
                return  # the service has ended, and JAX ends this process
            time.sleep(_SECONDS_BETWEEN_BEATS)

    def _watch(self) -> None:
        """End this process when a wait exceeds its limit, or when another process has failed."""
        while True:
            time.sleep(_SECONDS_BETWEEN_BEATS)
            position = self.position
            try:
                failure = self._get(_FAILURE)
                signaled = self._receive_signals() or self._get(_PREEMPTION) is not None
                if failure is not None:
                    process, message, code = json.loads(failure)
                    if process != self.process:
                        _leave(f"process {process} of the run ended: {message}", code=code)
                if signaled and self._signaled is None:
                    self._signaled = time.monotonic()
                self._check(position)
            except Exception:
                return  # the service has ended, and JAX ends this process

    def _check(self, position: _Position) -> None:
        if position.limit is None:
            return
        now, after_signal = time.monotonic(), self.limits.seconds_after_signal
        if now - position.since > position.limit:
            reason = f"waited {position.limit:g} s"
        elif self._signaled is not None and now - max(self._signaled, position.since) > after_signal:
            reason = f"received a signal to stop, and then waited {after_signal} s"
        else:
            return
        missing = self.missing()
        if self.position == position:
            missing = missing or "all processes are in it, so a collective program does not end"
            text = f"process {self.process} {reason} in {position.name!r}: {missing}."
            self.fail(text, code=EXIT_CODE)
            _leave(text, code=EXIT_CODE)

    def _published(self) -> dict[int, list[Any]]:
        pairs = self._client.key_value_dir_get(_DIRECTORY)
        return {int(key.rsplit("/", 1)[1]): json.loads(value) for key, value in pairs}

    def _get(self, key: str) -> str | None:
        try:
            return self._client.key_value_try_get(key)
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def _receive_signals(self) -> bool:
        """Return True if this process has received SIGINT, also while compiled code runs. JAX receives SIGTERM."""
        try:
            return signal.SIGINT in self._signals.recv(64)
        except BlockingIOError:
            return False


_watch: _Watch | None = None
_leaving = threading.Lock()


def watch_waits() -> None:
    """Start to limit the waits of this process. Call it once, after the processes of the run are connected."""
    global _watch
    state = distributed.global_state
    if state.client is not None and _watch is None and state.num_processes > 1:
        _watch = _Watch(state.client, process=state.process_id, processes=state.num_processes)


def limit_waits(limits: WaitConfig) -> None:
    """Set the limits of all waits from now on."""
    if _watch is not None:
        _watch.limits = limits


@contextlib.contextmanager
def waiting(name: str, *, seconds: float | None = None) -> Iterator[None]:
    """Limit the time of the block, in which this process waits for the others. All processes use the same name.

    Args:
      name: of the wait, for the message.
      seconds: limit; None takes that of `limit_waits`.

    Raises:
      LostProcessError: a connection between the processes failed in the block; the message names the missing process.
    """
    watch = _watch
    if watch is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    outer = watch.position
    watch.position = _Position(
        outer.count + 1, name, time.monotonic(), watch.limits.seconds if seconds is None else seconds
    )
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        missing = watch.missing()
        if not missing:
            raise
        watch.lost = True
        raise LostProcessError(
            f"Process {watch.process} lost its connection in {name!r} ({first_line(error)}): {missing}. Start "
            "the same command on all workers to resume."
        ) from error
    finally:
        last, now = watch.position, time.monotonic()
        if outer.limit is None:
            watch.position = dataclasses.replace(last, since=now, limit=None)
        else:
            watch.position = dataclasses.replace(outer, count=last.count, since=now)


def barrier(name: str, *, seconds: float | None = None) -> None:
    """Wait until all processes of the run have come to this point; `waiting` describes the arguments and errors."""
    if _watch is None:
        return
    with waiting(name, seconds=seconds):
        _watch.wait_at_barrier()


def exchange(name: str, value: str) -> list[str]:
    """Return the values of all processes, in the order of their index; `waiting` describes `name` and the errors."""
    if _watch is None:
        return [value]
    with waiting(name):
        return _watch.exchange(value)


def several_processes() -> bool:
    """Return True if this process is connected to others."""
    return _watch is not None


def lost_process() -> bool:
    """Return True if another process has ended, so that nothing can be completed with it."""
    return _watch is not None and _watch.lost


def end_run(message: str, *, code: int) -> NoReturn:
    """End this process and the others of the run after an error here; JAX would let them wait for each other."""
    assert _watch is not None
    _watch.fail(message, code=code)
    _exit(code)


def _leave(message: str, *, code: int) -> NoReturn:
    """End this process with one line."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"error: {message}\n")
    _exit(code)


def _exit(code: int) -> NoReturn:
    """End this process without the shutdown of JAX, which would wait for the other processes."""
    if not _leaving.acquire(blocking=False):  # another thread ends the process
        threading.Event().wait()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    if (
        distributed.global_state.process_id == 0
    ):  # process 0 runs the coordination service, which the others need for their message
        time.sleep(3 * _SECONDS_BETWEEN_BEATS)
    os._exit(code)


def first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
