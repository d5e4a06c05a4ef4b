"""Work on the visual decoder: rows of images, some U-Net calls at a time."""

import dataclasses
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image

from emu_jax.generation.pixels import SafetyCheck, screened, to_images
from emu_jax.serving.image_device import ImageDevice
from emu_jax.serving.jobs import ImageReady, ImageTask, Job
from emu_jax.serving.metrics import Metrics
from emu_jax.serving.scheduler import Work


class ImageWork:
    """Images that wait for a row, and those in the rows; the engine's thread only.

    Attributes:
      unconditional: the embeddings of the empty prompt, by model name.
    """

    def __init__(
        self, devices: Mapping[tuple[int, int], ImageDevice], metrics: Metrics, *, safety: SafetyCheck | None
    ) -> None:
        self._devices, self._metrics, self._safety = devices, metrics, safety
        self.unconditional: dict[str, np.ndarray] = {}
        self._complete: list[Job] = []
        self.reset()

    def ready(self) -> set[Work]:
        """Return the one kind of work where there is some."""
        return {Work.IMAGES} if any(self._waiting.values()) or any(map(any, self._rows.values())) else set()

    def add(self, job: Job, index: int, embeddings: np.ndarray) -> None:
        """Queue the images of one run of embeddings `[N, D]`."""
        plan = job.request.images
        assert plan is not None
        options = dataclasses.replace(plan.options, seed=(plan.options.seed + index) % 2**32)
        size: Any = (options.height, options.width)
        table, count = self._devices[size].table(options)
        for copy in range(plan.copies):
            self._waiting[size].append(ImageTask(job, index, copy, embeddings, options, table, count))
            job.open_images += 1

    def do(self) -> None:
        """One unit for each size in use: start images in free rows, then U-Net calls or one image's decoding."""
        for size, device in self._devices.items():
            rows, waiting = self._rows[size], self._waiting[size]
            for row, task in enumerate(rows):
                if task is None and waiting:
                    self._start(device, rows, row, waiting.popleft())
            done = next((task for task in rows if task is not None and task.called >= task.count), None)
            if done is not None:
                self._deliver(device, rows, done)
            elif any(rows):
                device.sample(np.array([task is not None for task in rows]))
                for task in filter(None, rows):
                    task.called = min(task.count, task.called + device.engine.sampler_calls)

    def remove(self, job: Job) -> None:
        """Forget the images of a job; their rows are free."""
        for size in self._devices:
            self._waiting[size] = deque(task for task in self._waiting[size] if task.job is not job)
            self._rows[size] = [task if task is None or task.job is not job else None for task in self._rows[size]]

    def take_complete(self) -> list[Job]:
        """Return the jobs that got their last image since the last call."""
        complete, self._complete = self._complete, []
        return complete

    def reset(self) -> None:
        """Begin with free rows and nothing waiting."""
        self._waiting: dict[tuple[int, int], deque[ImageTask]] = {size: deque() for size in self._devices}
        self._rows: dict[tuple[int, int], list[ImageTask | None]] = {
            size: [None] * device.engine.sampler_rows for size, device in self._devices.items()
        }
        for device in self._devices.values():
            device.reset()

    def warm_up(self) -> None:
        """Run the safety checker once, whose program compiles at its first use."""
        if self._safety is not None and self._devices:
            self._safety([PIL.Image.new("RGB", (64, 64))])

    def _start(self, device: ImageDevice, rows: list[ImageTask | None], row: int, task: ImageTask) -> None:
        unconditional = self.unconditional[task.job.request.model]
        device.begin(row, task.options, task.copy, task.embeddings, unconditional, task.table, task.count)
        task.row = row
        rows[row] = task

    def _deliver(self, device: ImageDevice, rows: list[ImageTask | None], task: ImageTask) -> None:
        assert task.row is not None
        images = screened(to_images(device.decode(task.row)[None]), self._safety)
        rows[task.row] = None
        job = task.job
        job.open_images -= 1
        job.deliver(ImageReady(task.index, task.copy, images[0]))
        self._metrics.observe_image(job)
        if not job.open_images:
            self._complete.append(job)
