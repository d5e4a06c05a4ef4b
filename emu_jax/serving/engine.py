"""Continuous batching: one thread that admits requests to slots and does one unit of device work after the other."""

import enum
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from emu_jax.diffusion.options import ImageOptions
from emu_jax.generation.pixels import SafetyCheck
from emu_jax.generation.prompt import Prompt
from emu_jax.serving.config import EngineConfig
from emu_jax.serving.decoding import TextWork
from emu_jax.serving.device import TextDevice
from emu_jax.serving.image_device import PROGRAMS, ImageDevice
from emu_jax.serving.imaging import ImageWork
from emu_jax.serving.jobs import Event, Failed, Finished, Job, Request
from emu_jax.serving.metrics import Metrics
from emu_jax.serving.scheduler import FairClock, Work
from emu_jax.serving.slots import prefix_chain

_IDLE_SECONDS = 1.0  # between two looks at deadlines, and two words to other processes

log = logging.getLogger(__name__)


class Status(enum.Enum):
    """Of the engine."""

    STARTING = "starting"  # programs are being compiled
    READY = "ready"
    DRAINING = "draining"  # running and waiting requests are completed, new ones refused
    FAILED = "failed"  # the device cannot be used


class QueueFullError(Exception):
    """As many requests wait as may."""


class UnavailableError(Exception):
    """The engine is starting, draining or has failed."""


class Engine:
    """Requests in, events out. `submit`, `abort`, `finish` and `drain` may be called from any thread."""

    def __init__(
        self,
        text: TextDevice,
        images: Mapping[tuple[int, int], ImageDevice],
        metrics: Metrics,
        *,
        empty_prompt: Prompt,
        safety: SafetyCheck | None = None,
    ) -> None:
        """`images`: by `(height, width)`; guidance leads away from what `empty_prompt`, ending in `[IMG]`, gives."""
        self.config: EngineConfig = text.engine
        self.metrics = metrics
        self._device, self._image_devices, self._empty_prompt = text, images, empty_prompt
        self._images = ImageWork(images, metrics, safety=safety)
        self._text = TextWork(text, self._images, metrics, ended=self._end)
        self._clock = FairClock()
        self._changed = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._waiting: deque[Job] = deque()
        self._open: set[Job] = set()
        self._stopping = False
        self.status = Status.STARTING
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    # ---- from any thread

    def start(self) -> None:
        """Compile all programs in the engine's thread, then serve."""
        self._thread.start()

    def submit(self, request: Request, deliver: Callable[[Event], None]) -> Job:
        """Queue a request. `deliver` gets its events on the engine's thread; `Finished` or `Failed` is the last.

        Raises:
          UnavailableError: the engine does not accept requests now.
          QueueFullError: `max_queue` requests wait already.
        """
        job = self._new_job(request, deliver)
        with self._changed:
            if self.status is not Status.READY:
                raise UnavailableError(f"The server is {self.status.value}.")
            if len(self._waiting) >= self.config.max_queue + self._text.free_slots:
                raise QueueFullError
            self._waiting.append(job)
            self._open.add(job)
            self._changed.notify()
        self._report()
        return job

    def abort(self, job: Job) -> None:
        """Drop a request whose client is gone: its slot is free before the next step, its prefix is not reused."""
        self._command(lambda: self._drop(job, keep=False))

    def finish(self, job: Job) -> None:
        """End an answer early on behalf of its client, at a stop sequence."""
        self._command(lambda: self._drop(job, keep=True))

    def drain(self) -> None:
        """Refuse new requests and complete the others."""
        with self._changed:
            if self.status is Status.READY:
                self.status = Status.DRAINING
            self._changed.notify()

    def stop(self) -> None:
        """End the thread; requests that are not complete fail."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def in_flight(self) -> int:
        """Requests that are not complete, waiting ones included."""
        return len(self._open)

    # ---- in the engine's thread

    def _work(self) -> None:
        try:
            if self._compile():
                while self._step():
                    pass
        except Exception:
            log.exception("The engine failed")
            self.status = Status.FAILED
        for job in list(self._open):
            self._fail(job, 503, "The server stopped before the answer was complete.")
        self._device.stop()

    def _compile(self) -> bool:
        """Compile and run every program once; False when the engine is to stop before that."""
        started = time.monotonic()
        programs: list[tuple[Any, str]] = [(self._device, name) for name in self._device.program_names]
        programs += [(device, name) for device in self._image_devices.values() for name in PROGRAMS]
        for device, name in programs:
            if self._stopping:
                return False
            device.compile(name)
        for model in self._device.weights:
            self._images.unconditional[model] = self._text.embeddings_of(self._empty_prompt, model)
        self._text.warm_up()
        self._images.warm_up()
        log.info("all programs compiled in %.0f s", time.monotonic() - started)
        with self._changed:
            self.status = Status.READY
        return True

    def _step(self) -> bool:
        """One unit of work, or a wait for some; False when the engine is to stop."""
        with self._changed:
            if self._stopping:
                return False
            commands, self._commands = self._commands, deque()
        for command in commands:
            command()
        self._expire()
        self._admit()
        work = self._clock.choose(self._text.ready() | self._images.ready())
        if work is None:
            with self._changed:
                idle = not (self._commands or self._stopping or (self._waiting and self._admissible()))
                woken = idle and self._changed.wait(_IDLE_SECONDS)
            if idle and not woken:
                self._device.rest()
            return True
        started = time.perf_counter()
        try:
            if work is Work.IMAGES:
                self._images.do()
            else:
                self._text.do(work)
        except Exception:
            self._recover()
        seconds = time.perf_counter() - started
        self._clock.charge(work, seconds)
        self.metrics.device_seconds.labels(work.value).inc(seconds)
        for job in self._images.take_complete():
            self._end(job)
        return True

    def _admit(self) -> None:
        """Move waiting requests to free slots, the oldest first; beam searches wait for the one before them."""
        with self._changed:
            while self._text.free_slots:
                job = next((job for job in self._waiting if job.beams == 1 or self._text.beams_free), None)
                if job is None:
                    break
                self._waiting.remove(job)
                self._text.admit(job)
        self._report()

    def _admissible(self) -> bool:
        return self._text.free_slots > 0 and any(job.beams == 1 or self._text.beams_free for job in self._waiting)

    def _expire(self) -> None:
        now = time.monotonic()
        with self._changed:
            late = [job for job in self._open if job.deadline < now]
        for job in late:
            self._remove(job, keep=False)
            self._fail(job, 504, f"The request took longer than the server's limit of {self.config.timeout:g} s.")

    def _drop(self, job: Job, *, keep: bool) -> None:
        if job.ended:
            return
        self._remove(job, keep=keep)
        self._close(job)
        if keep:
            self.metrics.observe_end(job)
        else:
            self.metrics.aborted.inc()

    def _remove(self, job: Job, *, keep: bool) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
        self._text.remove(job, keep=keep)
        self._images.remove(job)

    def _end(self, job: Job) -> None:
        """Report the end of an answer whose text is complete, once its images are."""
        if job.reason and not job.open_images and not job.ended:
            self.metrics.observe_end(job)
            job.deliver(Finished(job.reason, job.text_tokens, job.images, job.reused))
            self._close(job)

    def _fail(self, job: Job, status: int, message: str) -> None:
        job.deliver(Failed(status, message))
        self._close(job)

    def _close(self, job: Job) -> None:
        job.ended = True
        with self._changed:
            self._open.discard(job)
        self._report()

    def _recover(self) -> None:
        """Fail all requests after a program failed, whose arrays may be lost, and begin with empty slots."""
        log.exception("A program failed; all running requests end")
        for job in list(self._open):
            self._remove(job, keep=False)
            self._fail(job, 500, "The model failed while it answered; try again.")
        self._text.reset()
        self._images.reset()

    def _report(self) -> None:
        self.metrics.queue.set(len(self._waiting))
        self.metrics.in_flight.set(len(self._open))
        self.metrics.slots_used.set(self.config.slots - self._text.free_slots)

    def _command(self, command: Callable[[], None]) -> None:
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def _new_job(self, request: Request, deliver: Callable[[Event], None]) -> Job:
        ids = self._device.ids
        tokens = request.prompt.tokens
        is_image = tokens == ids.image_token_id
        chain = prefix_chain(
            request.prompt,
            request.digests,
            model=request.model,
            chunk=self.config.prefill_chunk,
            image_token_id=ids.image_token_id,
            num_image_tokens=ids.num_image_tokens,
        )
        return Job(
            request=request,
            deliver=deliver,
            deadline=time.monotonic() + self.config.timeout,
            chain=chain,
            image_rows=np.where(is_image, np.cumsum(is_image) - 1, -1).astype(np.int32),
        )

    def check_sampler(self, options: ImageOptions) -> None:
        """Raise UserError for a number of steps that the sampler cannot take."""
        self._image_devices[options.height, options.width].table(options)  # type: ignore[index]
