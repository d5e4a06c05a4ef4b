"""Measure the speed of a run: steps, tokens and images per second, time spent waiting for data, remaining time."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping

import jax

from emu_jax.hardware import peak_flops
from emu_jax.training.metrics import Metrics
from emu_jax.training.stage import HasStepFlops, Stage


class Throughput:
    """Clocks of one run. The rates exclude compilation, evaluations and the first step."""

    def __init__(self, stage: Stage, *, steps: int) -> None:
        """Take the number of tokens and image slots per step from the batch of the stage."""
        spec = stage.batch_spec()
        self._stage = stage
        self._slots = {
            "tokens": spec["tokens"].size if "tokens" in spec else 0,
            "images": spec["images"].shape[0] * (spec["images"].shape[1] if spec["images"].ndim == 5 else 1)
            if "images" in spec
            else 0,
        }
        self._steps = steps
        self._start = self._since = time.monotonic()
        self._first: int | None = None
        self._last_step = 0
        self._waited = self._paused = self._total_paused = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in the block as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time in the block from all rates."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start
        self._total_paused += time.monotonic() - start

    def step_done(self, step: int, *, first_metrics: Metrics) -> None:
        """Call after each step; the clocks start when the first step has finished on the device."""
        if self._first is None:
            jax.block_until_ready(first_metrics.values)
            self._first = self._last_step = step
            self._start = self._since = time.monotonic()
            self._waited = 0.0

    def seconds(self) -> float:
        """Return the seconds since the first step."""
        return time.monotonic() - self._start

    def result(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the rates since the last call.

        Args:
          step: number of steps done.
          metrics: metrics of these steps; `fill/tokens` and `fill/images` are the fractions that are not padding.
        """
        now = time.monotonic()
        seconds, steps = now - self._since - self._paused, step - self._last_step
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
        rates = {"host_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
        stats = jax.local_devices()[0].memory_stats()
        if stats and "peak_bytes_in_use" in stats:
            rates["device_memory_gb"] = stats["peak_bytes_in_use"] / 1e9
        if steps > 0 and seconds > 0:
            rate = steps / seconds
            rates |= {"steps_per_second": rate, "data_wait": min(self._waited / seconds, 1.0)}
            for name, slots in self._slots.items():
                if slots:
                    rates[f"{name}_per_second"] = rate * slots * metrics.get(f"fill/{name}", 1.0)
            rates |= self._flops(rates)
            assert self._first is not None
            overall = (step - self._first) / max(now - self._start - self._total_paused, 1e-9)
            rates["seconds_left"] = (self._steps - step) / overall
        self._since, self._last_step, self._waited, self._paused = now, step, 0.0, 0.0
        return rates

    def _flops(self, rates: Mapping[str, float]) -> dict[str, float]:
        if not isinstance(self._stage, HasStepFlops) or "tokens_per_second" not in rates:
            return {}
        flops = self._stage.step_flops(tokens=rates["tokens_per_second"], images=rates.get("images_per_second", 0.0))
        found = {"model_tflops_per_second": flops / 1e12}
        peak = peak_flops(jax.devices()[0].device_kind)
        return found if peak is None else found | {"mfu": flops / (peak * jax.device_count())}
