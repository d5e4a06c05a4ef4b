"""Work on the slots: prefill chunk by chunk, decode all running answers, and the beam search."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from emu_jax.generation.mixed import OpenImage
from emu_jax.generation.prompt import Prompt
from emu_jax.generation.sampling import TextOptions
from emu_jax.serving.device import TextDevice, prefill_name
from emu_jax.serving.imaging import ImageWork
from emu_jax.serving.jobs import Job, NewImage, NewTokens, Request
from emu_jax.serving.metrics import Metrics
from emu_jax.serving.programs import Chunk, Start
from emu_jax.serving.scheduler import Work
from emu_jax.serving.slots import Slots
from emu_jax.serving.state import BOOL, INT, Row, scalar_controls, text_row


class TextWork:
    """The jobs that hold slots; the engine's thread only.

    `ended` is called with each job whose text is complete.
    """

    def __init__(
        self, device: TextDevice, images: ImageWork, metrics: Metrics, *, ended: Callable[[Job], None]
    ) -> None:
        self._device, self._images, self._metrics, self._ended = device, images, metrics, ended
        self._slots = Slots(device.engine.slots)
        self._prefilling: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._beams_ready: deque[Job] = deque()  # prefilled, still in a slot
        self._searching: Job | None = None

    @property
    def free_slots(self) -> int:
        return self._slots.free

    @property
    def beams_free(self) -> bool:
        """True where no beam search is being prefilled or waits for the running one."""
        return not self._beams_ready and all(job.beams == 1 for job in self._prefilling)

    def ready(self) -> set[Work]:
        """Return the kinds of work that there are."""
        ready = set()
        if self._prefilling:
            ready.add(Work.PREFILL)
        if self._running:
            ready.add(Work.DECODE)
        if self._searching or self._beams_ready:
            ready.add(Work.BEAMS)
        return ready

    def do(self, work: Work) -> None:
        """Do one unit of work."""
        {Work.PREFILL: self._prefill, Work.DECODE: self._decode, Work.BEAMS: self._search}[work]()

    def admit(self, job: Job) -> None:
        """Give a job a free slot, with the chunks that the slot's cache shares with its prompt."""
        job.slot, shared = self._slots.take(job.chain)
        job.reused = job.prefilled = shared * self._device.engine.prefill_chunk
        rows = job.image_rows[job.prefilled :]
        images = rows[rows >= 0] // self._device.ids.num_image_tokens
        job.to_encode = sorted({int(image) for image in images})
        self._metrics.reused_tokens.inc(job.reused)
        self._prefilling.append(job)

    def remove(self, job: Job, *, keep: bool) -> None:
        """Take a job off its slot; `keep` its prompt in the cache where it is complete."""
        if job in self._prefilling:
            self._prefilling.remove(job)
            keep = False
        if job in self._beams_ready:
            self._beams_ready.remove(job)
        if job is self._searching:
            self._searching = None
        self._release(job, keep=keep)

    def reset(self) -> None:
        """Begin with an empty device; all jobs have been removed."""
        self._device.reset()
        self._slots = Slots(self._device.engine.slots)

    def embeddings_of(self, prompt: Prompt, model: str) -> np.ndarray:
        """Return the embeddings `[N, D]` that follow a prompt without images; before any job runs."""
        N = self._device.ids.num_image_tokens
        request = Request(model=model, prompt=prompt, digests=(), text=TextOptions(max_new_tokens=N))
        rows = np.full(len(prompt.tokens), -1, np.int32)
        job = Job(request, lambda event: None, 0.0, (), rows, slot=0)
        while job.prefilled < job.prompt_length:
            self._prefill_chunk(job)
        row = Row(scalar_controls(request.text), INT(1), BOOL(False), BOOL(True))
        self._device.run("begin", model, self._start(job, row, phase=N + 1))
        active = np.arange(self._device.engine.slots) == 0
        while not self._device.run("decode", model, active).done[0]:
            pass
        return self._device.run("embeddings", model, INT(0))

    def warm_up(self) -> None:
        """Run every program once on nothing."""
        for name in self._device.program_names:
            self._device.run_example(name)

    # ---- prefill

    def _prefill(self) -> None:
        """One batch of images, or one chunk of the job whose turn it is."""
        job = self._prefilling[0]
        if job.to_encode:
            self._encode(job.request.model)
            return
        self._prefilling.rotate(-1)
        if job.prefilled < job.prompt_length:
            self._prefill_chunk(job)
        if job.prefilled >= job.prompt_length:
            self._prefilling.remove(job)
            self._begin(job)

    def _encode(self, model: str) -> None:
        images = [
            (job, image)
            for job in self._prefilling
            if job.request.model == model
            for image in job.to_encode
        ]  # fmt: skip
        pixels, slots, indices = self._device.blank_images()
        for row, (job, image) in enumerate(images[: len(pixels)]):
            pixels[row], slots[row], indices[row] = job.request.prompt.images[image], job.slot, image
            job.to_encode.remove(image)
        self._device.run("encode", model, pixels, slots, indices)
        self._metrics.encoded_images.inc(min(len(images), len(pixels)))

    def _prefill_chunk(self, job: Job) -> None:
        left = job.prompt_length - job.prefilled
        sizes = self._device.engine.chunk_sizes
        size = next((size for size in sizes if size >= left), sizes[-1])
        part = slice(job.prefilled, job.prefilled + min(size, left))
        tokens: Any = np.zeros(size, np.int32)
        rows: Any = np.full(size, -1, np.int32)
        tokens[: part.stop - part.start] = job.request.prompt.tokens[part]
        rows[: part.stop - part.start] = job.image_rows[part]
        chunk = Chunk(slot=INT(job.slot), start=INT(job.prefilled), tokens=tokens, image_rows=rows)
        self._device.run(prefill_name(size), job.request.model, chunk)
        job.prefilled = part.stop
        self._metrics.prefilled_tokens.inc(part.stop - part.start)

    def _begin(self, job: Job) -> None:
        if job.beams > 1:
            self._beams_ready.append(job)
            return
        plan = job.request.images
        first = plan is not None and plan.when is OpenImage.FIRST
        row = Row(
            controls=scalar_controls(job.request.text),
            max_images=INT(plan.max_images if plan else 0),
            alternate=BOOL(plan is not None and plan.when is OpenImage.ALTERNATE),
            only_image=BOOL(plan is not None and plan.only_image),
        )
        phase = self._device.ids.num_image_tokens + 1 if first else 0
        self._device.run("begin", job.request.model, self._start(job, row, phase=phase))
        assert job.slot is not None
        self._running[job.slot] = job

    @staticmethod
    def _start(job: Job, row: Row, *, phase: int) -> Start:
        return Start(
            slot=INT(job.slot),
            token=INT(job.request.prompt.tokens[-1]),
            position=INT(job.prompt_length),
            phase=INT(phase),
            row=row,
        )

    # ---- decode

    def _decode(self) -> None:
        """A few tokens of every running answer, one call for each model that has some."""
        for model in dict.fromkeys(job.request.model for job in self._running.values()):
            jobs = {slot: job for slot, job in self._running.items() if job.request.model == model}
            active = np.zeros(self._device.engine.slots, bool)
            active[list(jobs)] = True
            decoded = self._device.run("decode", model, active)
            for slot, job in jobs.items():
                tokens = decoded.tokens[:, slot]
                self._take(job, tokens[tokens >= 0].tolist())
                if decoded.done[slot]:
                    self._complete(job)

    def _take(self, job: Job, tokens: list[int]) -> None:
        """Report new tokens of an answer, and hand its complete images on."""
        ids, plan = self._device.ids, job.request.images
        words: list[int] = []

        def flush() -> None:
            if words:
                job.text_tokens += len(words)
                job.last_token = words[-1]
                job.deliver(NewTokens(tuple(words)))
                self._metrics.observe_tokens(job, len(words))
                words.clear()

        for token in tokens:
            if plan is None or token not in (ids.boi_id, ids.image_token_id, ids.eoi_id):
                words.append(token)
            elif token == ids.image_token_id:
                job.run += 1
                if job.run == ids.num_image_tokens:
                    flush()
                    job.run = 0
                    self._take_image(job)
        flush()

    def _take_image(self, job: Job) -> None:
        job.deliver(NewImage(job.images))
        embeddings = self._device.run("embeddings", job.request.model, INT(job.slot))
        self._images.add(job, job.images, embeddings)
        job.images += 1

    def _complete(self, job: Job) -> None:
        full = job.text_tokens >= job.request.text.max_new_tokens and job.last_token != self._device.ids.eos_id
        job.reason = "length" if full else "stop"
        self._release(job, keep=True)
        self._ended(job)

    def _release(self, job: Job, *, keep: bool) -> None:
        if job.slot is None:
            return
        self._running.pop(job.slot, None)
        self._slots.release(job.slot, job.chain if keep else ())
        job.slot = None

    # ---- beams

    def _search(self) -> None:
        if self._searching is None:
            job = self._beams_ready.popleft()
            row = text_row(scalar_controls(job.request.text))
            self._device.run("begin_beams", job.request.model, self._start(job, row, phase=0), INT(job.beams))
            self._release(job, keep=True)
            self._searching = job
            return
        job = self._searching
        answer = self._device.run("step_beams", job.request.model)
        if answer.done:
            self._searching = None
            self._take(job, answer.tokens[1 : answer.length].tolist())
            self._complete(job)
