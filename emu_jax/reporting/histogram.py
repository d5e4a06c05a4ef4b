"""Histograms as inline SVG."""

from collections.abc import Sequence

import numpy as np


def histogram(values: Sequence[int], *, maximum: int, bars: int = 40) -> str:
    """Return an SVG with the counts of `values` between 0 and `maximum`."""
    counts, edges = np.histogram(values, bins=min(bars, maximum), range=(0, maximum))
    width, height, largest = 720, 140, max(int(counts.max()), 1)
    step = width / len(counts)
    rectangles = "".join(
        f'<rect x="{i * step:.1f}" y="{height - height * count / largest:.1f}" width="{step - 1:.1f}" '
        f'height="{height * count / largest:.1f}" fill="#4c78a8">'
        f"<title>{edges[i]:.0f} to {edges[i + 1]:.0f}: {count}</title></rect>"
        for i, count in enumerate(counts.tolist())
    )
    ticks = "".join(
        f'<text class="tick" x="{width * fraction:.0f}" y="{height + 15}" text-anchor="middle">'
        f"{maximum * fraction:.0f}</text>"
        for fraction in (0, 0.25, 0.5, 0.75, 1)
    )
    box = f'width="{width + 40}" height="{height + 22}" viewBox="-20 0 {width + 40} {height + 22}"'
    return f"<svg {box}>{rectangles}{ticks}</svg>"
