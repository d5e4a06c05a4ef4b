"""Line charts: points, gaps, averages and ticks."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from emu_jax.reporting.charts import Line, line_chart, log_ticks, nice_ticks
from emu_jax.reporting.numbers import duration, number


def test_missing_values_leave_gaps_at_their_steps():
    chart = line_chart("t", [Line("a", [0, 10, 20, 30], [1.0, None, math.nan, 3.0]), Line("b", [5], [2.0])])
    assert len(re.search(r'points="([^"]+)"', chart)[1].split()) == 2
    assert "<circle" in chart
    assert "a <b>3</b>" in chart
    assert line_chart("t", [Line("a", [1, 2], [None, math.nan])]) == ""
    assert line_chart("t", []) == ""


def test_points_are_placed_by_their_values():
    chart = line_chart("t", [Line("a", [0, 50, 100], [0.0, 5.0, 10.0])])
    points = np.array([[float(v) for v in p.split(",")] for p in re.search(r'points="([^"]+)"', chart)[1].split()])
    np.testing.assert_allclose(points[1], points[[0, 2]].mean(0), atol=0.1)
    assert points[0, 0] < points[2, 0]
    assert points[0, 1] > points[2, 1], "larger values are higher"


def test_many_points_are_averaged():
    steps = np.arange(10_000)
    chart = line_chart("t", [Line("a", steps, np.where(steps % 2, 1.0, 3.0))])
    points = re.search(r'points="([^"]+)"', chart)[1].split()
    assert len(points) == 240
    heights = {point.split(",")[1] for point in points}
    assert len(heights) <= 3, "pairs of 1 and 3 average to 2"


@pytest.mark.parametrize("value", [0.0, 1e-9, -3.0, 1e7])
def test_a_constant_line_has_finite_coordinates(value):
    assert "nan" not in line_chart("t", [Line("a", [1, 2, 3], [value] * 3)], logarithmic=True)


def test_ticks_are_round_and_span_the_values():
    assert nice_ticks(0.13, 2.6) == [0.0, 1.0, 2.0, 3.0]
    assert nice_ticks(0, 1200) == [0, 500, 1000, 1500]
    assert log_ticks(0.003, 2) == [0.001, 0.01, 0.1, 1.0, 10.0]
    for low, high in ((1e-12, 3.0), (5.0, 5.0), (-2.0, 1e6)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= 7


def test_numbers_are_short():
    assert [number(v) for v in (12500, 0.0003, 0, 0.25, 1500, 2.5e6, -0.00012)] == [
        "12.5k", "3e-4", "0", "0.25", "1500", "2.5M", "-1.2e-4",
    ]  # fmt: skip
    assert [duration(seconds) for seconds in (45, 190, 3750)] == ["45s", "3m10s", "1h02m"]
