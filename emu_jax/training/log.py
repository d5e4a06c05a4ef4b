"""Log the progress of a run: WORKDIR/metrics.jsonl, TensorBoard and the console."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, TextIO

from tensorboardX import SummaryWriter

from emu_jax.io.files import file_errors, is_file, read_bytes, write_text
from emu_jax.reporting.numbers import duration

METRICS_FILE = "metrics.jsonl"


class Sink(Protocol):
    """Another receiver of the metrics, with the methods of MetricsLog."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Receive one record."""

    def warn(self, step: int, warning: str) -> None:
        """Receive one warning."""

    def close(self) -> None:
        """Finish; called once at the end."""


class MetricsLog:
    """Write each record as one line of JSON and as TensorBoard scalars; only process 0 makes one."""

    def __init__(self, workdir: str | Path, *, step: int, sinks: Sequence[Sink] = ()) -> None:
        """Open the logs of a run at `step`. Later records, of an earlier attempt that went further, are removed.

        Raises:
          UserError: the workdir cannot be written.
        """
        self._sinks = tuple(sinks)
        path = Path(workdir) / METRICS_FILE
        earlier = [record for record in read_metrics(workdir) if record["step"] <= step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in earlier))
        with file_errors("write", path):
            self._file: TextIO = path.open("a")
            self._tensorboard = SummaryWriter(
                str(Path(workdir) / "tensorboard"), purge_step=step + 1 if step else None, max_queue=1000
            )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one record; a value that is not finite becomes null in JSON."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._append({"step": step, "time": round(time.time(), 3), **finite})
        for name, value in finite.items():
            if value is not None:
                self._tensorboard.add_scalar(name, value, step)
        for sink in self._sinks:
            sink.write(step, metrics)

    def warn(self, step: int, warning: str) -> None:
        """Append a warning with its step."""
        self._append({"step": step, "time": round(time.time(), 3), "warning": warning})
        self._tensorboard.add_text("warning", warning, step)
        for sink in self._sinks:
            sink.warn(step, warning)

    def close(self) -> None:
        """Flush and close all logs."""
        self._file.close()
        self._tensorboard.close()
        for sink in self._sinks:
            sink.close()

    def _append(self, record: Mapping[str, object]) -> None:
        with file_errors("write", self._file.name):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()


def read_metrics(workdir: str | Path) -> list[dict]:
    """Return the records of WORKDIR/metrics.jsonl, without lines that were damaged by a kill or a full disk."""
    path = Path(workdir) / METRICS_FILE
    records = []
    for line in read_bytes(path).splitlines() if is_file(path) else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


class Console:
    """Progress lines on stderr: updated in place on a terminal, appended elsewhere; silent if not `enabled`."""

    def __init__(self, title: str, *, steps: int, enabled: bool = True) -> None:
        self._title, self._steps, self._enabled = title, steps, enabled
        self._in_place = enabled and sys.stderr.isatty()
        self._open_lines = 0

    def __enter__(self) -> "Console":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_line()

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the progress lines; on a terminal they replace the previous ones."""
        if not self._enabled:
            return
        lines = progress_lines(self._title, step, self._steps, metrics)
        if self._in_place:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            up = f"\x1b[{self._open_lines - 1}A" if self._open_lines > 1 else ""
            sys.stderr.write("\r" + up + "\n".join(f"\x1b[2K{line[: width - 1]}" for line in lines))
            self._open_lines = len(lines)
        else:
            sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()

    def message(self, text: str) -> None:
        """Write a message on a new line."""
        if self._enabled:
            self._end_line()
            sys.stderr.write(f"{self._title}: {text}\n")
            sys.stderr.flush()

    def _end_line(self) -> None:
        if self._open_lines:
            sys.stderr.write("\n")
            self._open_lines = 0


def progress_lines(title: str, step: int, steps: int, metrics: Mapping[str, float]) -> list[str]:
    """Format losses and speed, then the losses per data set, norms per part and monitors that `metrics` has.

    "filled" gives the fractions of tokens and of image slots that are not padding.

        pretrain 1200/4000 30%  loss 1.25  text 0.75  regression 0.5  41.2k tokens/s  filled 97%/99%  MFU 41.2%
          text: laion 0.8, mmc4 1.1  regression: laion 0.4, mmc4 0.6
          gradient 1.3: decoder 1.2, vision_encoder 0.5  update: decoder 0.01, vision_encoder 0.002
          embeddings: variance 0.52, cosine 0.31, rank 17
    """
    lines = [_speed_line(title, step, steps, metrics)]
    per_set = {loss: group for loss in ("text", "regression") if (group := _group(metrics, f"loss/{loss}/"))}
    lines.append("  ".join(f"{loss}: {_listed(group)}" for loss, group in per_set.items()))
    norms = []
    if gradient := _group(metrics, "gradient_norm/"):
        norms.append(f"gradient {_short(metrics['gradient_norm'])}: {_listed(gradient)}")
    if update := _group(metrics, "update_norm/"):
        norms.append(f"update: {_listed(update)}")
    lines.append("  ".join(norms))
    monitors = _group(metrics, "visual_embedding_")
    lines.append(f"embeddings: {_listed(monitors)}" if monitors else "")
    return [lines[0], *(f"  {line}" for line in lines[1:] if line)]


def _speed_line(title: str, step: int, steps: int, metrics: Mapping[str, float]) -> str:
    parts = [f"{title} {step}/{steps} {step / steps:.0%}"]
    losses = [name for name in metrics if name == "loss" or (name.startswith("loss/") and name.count("/") == 1)]
    parts += [f"{name.removeprefix('loss/')} {metrics[name]:.4g}" for name in losses]
    for name, unit in (
        ("steps_per_second", "steps/s"),
        ("tokens_per_second", "tokens/s"),
        ("images_per_second", "images/s"),
    ):
        if name in metrics:
            parts.append(f"{_short(metrics[name])} {unit}")
    if "fill/tokens" in metrics and "fill/images" in metrics:
        parts.append(f"filled {metrics['fill/tokens']:.0%}/{metrics['fill/images']:.0%}")
    if "mfu" in metrics:
        parts.append(f"MFU {metrics['mfu']:.1%}")
    elif "model_tflops_per_second" in metrics:
        parts.append(f"{_short(metrics['model_tflops_per_second'] * 1e12)}FLOP/s")
    if "data_wait" in metrics:
        parts.append(f"data wait {metrics['data_wait']:.0%}")
    for name, memory in (("device_memory_gb", "device"), ("host_memory_gb", "host")):
        if name in metrics:
            parts.append(f"{memory} {metrics[name]:.1f} GB")
    if metrics.get("skipped"):
        parts.append(f"skipped {metrics['skipped']:.1%}")
    if "seconds_left" in metrics and step < steps:
        parts.append(f"{duration(metrics['seconds_left'])} left")
    return "  ".join(parts)


def _group(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Return the finite metrics whose names start with `prefix`, without it."""
    found = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _listed(group: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in group.items())


def _short(value: float) -> str:
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.3g}{letter}"
    return f"{value:.0f}" if value >= 1e3 else f"{value:.3g}"
