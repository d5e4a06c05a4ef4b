"""Line charts as inline SVG: no library, no script; the page's style gives colors for light and dark mode."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emu_jax.reporting.numbers import number
from emu_jax.reporting.page import escape

_WIDTH, _HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 30
_MAX_POINTS = 240  # per line; more points are averaged
_NUM_COLORS = 8  # .line-0 ... .line-7 in the page's style
_MIN_LOG_SPAN = 10.0  # a smaller ratio of the largest to the smallest value needs no logarithmic scale


@dataclass(frozen=True)
class Line:
    """A line: `values` at `steps`; None or NaN marks a missing value."""

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]


def line_chart(
    title: str, lines: Sequence[Line], *, marks: Sequence[tuple[float, str]] = (), logarithmic: bool = False
) -> str:
    """Return a `<figure>` with the lines, their last values in the legend, and dashed vertical marks.

    Args:
      marks: (step, event) of each mark; the event is its tooltip.
      logarithmic: use a logarithmic axis if all values are positive and span a factor of ten.

    Returns:
      HTML; an empty text if no line has a value.
    """
    drawn = [(line, *_finite(line)) for line in lines]
    drawn = [(line, x, y) for line, x, y in drawn if len(x)]
    if not drawn:
        return ""
    low, high = min(y.min() for _, _, y in drawn), max(y.max() for _, _, y in drawn)
    logarithmic = bool(logarithmic and low > 0 and high / low > _MIN_LOG_SPAN)
    ticks = log_ticks(low, high) if logarithmic else nice_ticks(low, high)
    scale = np.log10 if logarithmic else np.asarray
    bottom, top = float(scale(min(low, ticks[0]))), float(scale(max(high, ticks[-1])))
    first, last = min(x.min() for _, x, _ in drawn), max(x.max() for _, x, _ in drawn)

    def to_x(x: np.ndarray | float) -> np.ndarray:
        return _LEFT + (np.asarray(x) - first) / max(last - first, 1e-9) * (_WIDTH - _LEFT - _RIGHT)

    def to_y(y: np.ndarray | float) -> np.ndarray:
        return _HEIGHT - _BOTTOM - (scale(y) - bottom) / max(top - bottom, 1e-12) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in ticks:
        y = float(to_y(tick))
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in nice_ticks(first, last):
        if first <= tick <= last:
            x = float(to_x(tick))
            parts.append(f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 9}" text-anchor="middle">{number(tick)}</text>')
    for step, event in marks:
        x = float(to_x(min(max(step, first), last)))
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}">'
            f"<title>{escape(event)}</title></line>"
        )
    legend = []
    for i, (line, steps, values) in enumerate(drawn):
        css_class = f"line-{i % _NUM_COLORS}"
        if len(steps) == 1:
            center = f'cx="{float(to_x(steps[0])):.1f}" cy="{float(to_y(values[0])):.1f}"'
            parts.append(f'<circle class="{css_class}" {center} r="2.5"/>')
        else:
            points = " ".join(f"{px:.1f},{py:.1f}" for px, py in zip(to_x(steps), to_y(values), strict=True))
            parts.append(f'<polyline class="{css_class}" points="{points}"/>')
        legend.append(f'<li class="{css_class}">{escape(line.name)} <b>{number(_last(line))}</b></li>')
    scale_note = " <small>log scale</small>" if logarithmic else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{scale_note}</figcaption>'
        f'{"".join(parts)}</svg><ul class="legend">{"".join(legend)}</ul></figure>'
    )


def nice_ticks(low: float, high: float, *, count: int = 4) -> list[float]:
    """Return about `count` round numbers from at most `low` to at least `high`.

    nice_ticks(0.13, 2.6) -> [0.0, 1.0, 2.0, 3.0]
    """
    span = max(high - low, abs(high) * 1e-3, 1e-12)
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next((m for m in (1, 2, 2.5, 5) if m * power >= raw * (1 - 1e-9)), 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten that span [low, high]; every second or third one if there are many.

    log_ticks(0.003, 2) -> [0.001, 0.01, 0.1, 1.0, 10.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = math.ceil((last - first + 1) / 6)
    return [10.0**power for power in range(first, last + stride, stride)]


def _finite(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Return the finite points (x, y), averaged to at most `_MAX_POINTS`."""
    x = np.asarray(line.steps, float)
    y = np.asarray([math.nan if value is None else value for value in line.values], float)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) <= _MAX_POINTS:
        return x, y
    groups = np.array_split(np.arange(len(x)), _MAX_POINTS)
    return np.array([x[g].mean() for g in groups]), np.array([y[g].mean() for g in groups])


def _last(line: Line) -> float:
    return float(next(value for value in reversed(line.values) if value is not None and math.isfinite(value)))
