"""Write an XLA profile of a few steps, for TensorBoard or xprof."""

from pathlib import Path

import jax

FIRST, LAST = 10, 13  # steps of this process; earlier ones include compilation and the first reads


class Profiler:
    """Write WORKDIR/profile during the steps FIRST to LAST of this process."""

    def __init__(self, workdir: str | Path, *, enabled: bool) -> None:
        self._directory, self._enabled, self._steps, self._running = str(Path(workdir) / "profile"), enabled, 0, False

    def before_step(self) -> None:
        """Call before each step is dispatched to the device."""
        self._steps += 1
        if self._enabled and self._steps == FIRST:
            jax.profiler.start_trace(self._directory)
            self._running = True

    def after_step(self, results: object) -> None:
        """Call after each step is dispatched, with its results; waits for the last profiled one."""
        if self._running and self._steps == LAST:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Write the profile, also if the run ends early."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
