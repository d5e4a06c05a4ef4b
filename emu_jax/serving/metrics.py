"""The values of /metrics, in Prometheus' text format, in a separate registry."""

import time

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from emu_jax.serving.jobs import Job

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self, *, slots: int) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, doc: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"emu_{name}", doc, labels, registry=self.registry)

        def gauge(name: str, doc: str) -> Gauge:
            return Gauge(f"emu_{name}", doc, registry=self.registry)

        def histogram(name: str, doc: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"emu_{name}", doc, buckets=buckets, registry=self.registry)

        self.requests = counter("requests", "HTTP requests by route and status", ("route", "status"))
        self.aborted = counter("aborted_requests", "Requests whose client left before the end")
        self.queue = gauge("queue_requests", "Requests that wait for a slot")
        self.in_flight = gauge("in_flight_requests", "Requests that are not complete, waiting ones included")
        self.slots_used = gauge("slots_used", "Slots of the KV cache that hold a running request")
        gauge("slots", "Slots of the KV cache").set(slots)
        self.prefilled_tokens = counter("prefilled_tokens", "Prompt tokens that were computed")
        self.reused_tokens = counter("reused_tokens", "Prompt tokens that were in a slot's cache already")
        self.generated_tokens = counter("generated_tokens", "Text tokens of answers")
        self.encoded_images = counter("encoded_images", "Images through the vision encoder")
        self.generated_images = counter("generated_images", "Images through the visual decoder")
        self.first_token = histogram("time_to_first_token_seconds", "From the request to its first output", _SECONDS)
        self.per_token = histogram("time_per_token_seconds", "Between text tokens of an answer", _TOKEN_SECONDS)
        self.latency = histogram("request_seconds", "From the request to the end of its answer", _SECONDS)
        self.device_seconds = counter("device_seconds", "Device time by kind of work", ("work",))
        self.compilations = counter("compilations", "Programs compiled in this process")
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def observe_tokens(self, job: Job, count: int) -> None:
        """Record new text tokens of an answer."""
        self.generated_tokens.inc(count)
        self._observe_output(job)

    def observe_image(self, job: Job) -> None:
        """Record a complete image."""
        self.generated_images.inc()
        self._observe_output(job)

    def observe_end(self, job: Job) -> None:
        """Record a complete answer."""
        now = time.monotonic()
        self.latency.observe(now - job.submitted)
        if job.first_event is not None and job.text_tokens > 1 and not job.images:
            self.per_token.observe((now - job.first_event) / (job.text_tokens - 1))

    def page(self) -> bytes:
        """Return all values as Prometheus reads them."""
        return generate_latest(self.registry)

    def _observe_output(self, job: Job) -> None:
        if job.first_event is None:
            job.first_event = time.monotonic()
            self.first_token.observe(job.first_event - job.submitted)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        del duration_secs
        if event == "/jax/core/compile/backend_compile_duration":
            self.compilations.inc()
