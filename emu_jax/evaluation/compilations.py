"""Count the programs that XLA compiles."""

from types import TracebackType

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


class CompilationCounter:
    """Count compilations while the `with` block runs; `count` is the number so far."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "CompilationCounter":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        self.count += event == _EVENT
