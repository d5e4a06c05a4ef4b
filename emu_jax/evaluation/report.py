"""report.html of a task: its scores with intervals, and the best, the worst and random examples with their images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from emu_jax.data.images import DecodeError, decode
from emu_jax.data.media_paths import VIDEO_SUFFIXES
from emu_jax.data.video import take_frames
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.metrics.scores import Score
from emu_jax.evaluation.results import TaskResult, flat_scores
from emu_jax.reporting import page

REPORT = "report.html"
_SHOWN = 12
_SIDE = 160
_FRAMES = 3
_MAX_TEXT = 400


def write_task_report(result: TaskResult, folder: Path, *, seed: int = 0) -> None:
    """Write OUT/TASK/report.html.

    Raises:
      UserError: the file cannot be written.
    """
    sections = [page.Section("Scores", _scores(result), "95% bootstrap intervals over the examples.")]
    per_example = [] if result.scored is None else result.scored.per_example
    if len(per_example) == len(result.examples):
        order = np.argsort(-np.asarray(per_example), kind="stable")
        sections += [
            page.Section("Best examples", _cards(result, folder, order[:_SHOWN])),
            page.Section("Worst examples", _cards(result, folder, order[::-1][:_SHOWN])),
        ]
    chosen = np.random.default_rng(seed).permutation(len(result.examples))[:_SHOWN]
    sections += [page.Section("Random examples", _cards(result, folder, chosen))]
    count = f"{len(result.examples)} of {result.total} examples of the split {result.split}"
    missing = f"; {len(result.missing)} are missing and count in no score" if result.missing else ""
    page.write_page(folder / REPORT, sections, title=result.task.title, lead=f"{count}{missing}.")


def _scores(result: TaskResult) -> str:
    if result.scored is None:
        return ""
    rows = [
        [page.escape(name), f"{score.printed:.2f}", _interval(score), str(score.count), page.escape(score.unit)]
        for name, score in flat_scores(result.scored.scores).items()
    ]
    return page.table(["score", "value", "95% interval", "examples", "unit"], rows)


def _interval(score: Score) -> str:
    interval = score.printed_interval
    return "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _cards(result: TaskResult, folder: Path, rows: Sequence[int] | np.ndarray) -> str:
    scored = result.scored
    cards = []
    for row in map(int, rows):
        example, value = result.examples[row], result.predictions[row]
        parts = [_thumbnails([*example.media, *_generated(value, folder)])]
        parts += [_line("id", " ".join(map(str, example.key)))]
        parts += [_line("question", example.text)] if example.text else []
        parts += [_line("prediction", _shown(value, example))]
        references = ", ".join(dict.fromkeys(example.references))
        parts += [_line("references", references)] if references else []
        if scored is not None and row < len(scored.per_example):
            parts.append(_line("score", f"{scored.per_example[row]:.3f}"))
        cards.append(page.card(*parts))
    return page.cards(cards)


def _line(name: str, text: str) -> str:
    text = text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} ..."
    return f"<p><b>{page.escape(name)}</b> {page.escape(text)}</p>"


def _shown(value: Any, example: Example) -> str:
    """Return a prediction as text; a ranking as its first options."""
    if isinstance(value, list) and "options" in example.details:
        order = np.argsort(value, kind="stable")[:3]
        return "; ".join(example.details["options"][int(i)] for i in order)
    return str(value)


def _generated(value: Any, folder: Path) -> list[Path]:
    names = value if isinstance(value, list) else [value]
    return [folder / name for name in names if isinstance(name, str) and name.endswith(".png")]


def _thumbnails(paths: Sequence[Path]) -> str:
    images = []
    for path in paths:
        try:
            is_video = path.suffix.lower() in VIDEO_SUFFIXES
            frames = take_frames(path, frames=_FRAMES) if is_video else [decode(path)]
        except DecodeError:
            continue  # listed as missing
        images += [_thumbnail(frame) for frame in frames]
    return page.image_row(images) if images else ""


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    image = PIL.Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    return np.asarray(image)
