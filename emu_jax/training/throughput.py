"""How fast a run goes: steps, tokens and images a second, the share of time spent on waiting for data, time left."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping

import jax

from emu_jax.hardware import peak_flops
from emu_jax.training.metrics import Metrics
from emu_jax.training.stage import CountsFlops, Stage


class Throughput:
    """Clocks of one run. Compilation, evaluations and the first step are left out of the rates."""

    def __init__(self, stage: Stage, *, steps: int) -> None:
        """The stage's batch tells how many token places and image slots a step has."""
        spec = stage.batch_spec()
        self._stage = stage
        self._places = {
            "tokens": spec["tokens"].size if "tokens" in spec else 0,
            "images": spec["images"].shape[0] * (spec["images"].shape[1] if spec["images"].ndim == 5 else 1)
            if "images" in spec
            else 0,
        }
        self._steps = steps
        self._begun = self._since = time.monotonic()
        self._first: int | None = None
        self._last_step = 0
        self._waited = self._paused = self._paused_in_all = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time within is time spent on waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time within counts for nothing."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start
        self._paused_in_all += time.monotonic() - start

    def step_done(self, step: int, *, first_metrics: Metrics) -> None:
        """Called after each step; the clocks start once the first has really finished."""
        if self._first is None:
            jax.block_until_ready(first_metrics.values)
            self._first = self._last_step = step
            self._begun = self._since = time.monotonic()
            self._waited = 0.0

    def seconds(self) -> float:
        """Since the first step."""
        return time.monotonic() - self._begun

    def result(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Rates since the last call; `metrics` holds the shares `fill/tokens` and `fill/images` that are no padding."""
        now = time.monotonic()
        seconds, steps = now - self._since - self._paused, step - self._last_step
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
        found = {"host_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
        stats = jax.local_devices()[0].memory_stats()
        if stats and "peak_bytes_in_use" in stats:
            found["device_memory_gb"] = stats["peak_bytes_in_use"] / 1e9
        if steps > 0 and seconds > 0:
            rate = steps / seconds
            found |= {"steps_per_second": rate, "data_wait": min(self._waited / seconds, 1.0)}
            for kind, places in self._places.items():
                if places:
                    found[f"{kind}_per_second"] = rate * places * metrics.get(f"fill/{kind}", 1.0)
            found |= self._mfu(found)
            assert self._first is not None
            overall = (step - self._first) / max(now - self._begun - self._paused_in_all, 1e-9)
            found["seconds_left"] = (self._steps - step) / overall
        self._since, self._last_step, self._waited, self._paused = now, step, 0.0, 0.0
        return found

    def _mfu(self, rates: Mapping[str, float]) -> dict[str, float]:
        peak = peak_flops(jax.devices()[0].device_kind)
        if not isinstance(self._stage, CountsFlops) or "tokens_per_second" not in rates:
            return {}
        flops = self._stage.step_flops(tokens=rates["tokens_per_second"], images=rates.get("images_per_second", 0.0))
        found = {"model_tflops_per_second": flops / 1e12}
        return found if peak is None else found | {"mfu": flops / (peak * jax.device_count())}
