"""Tables of a plan, of a study's runs and of a fit, as text for the terminal."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

from emu_jax.scaling.fit import FIT_NAMES, FitResult, to_json
from emu_jax.scaling.plan import Plan

_NUMBERS = ("E", "A", "alpha", "B", "beta", "a", "b")


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns as wide as their longest cell, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def plan_table(plan: Plan) -> str:
    """Return one line for each run, and the sums."""
    rows = [
        [
            run.id,
            f"{run.budget:.3g}",
            f"{run.params / 1e6:.4g}M",
            f"{run.tokens:.3g}",
            f"{run.tokens / run.params:.3g}",
            str(run.steps),
            str(run.start) if run.parent else "",
            f"{run.learning_rate:.3g}",
            f"{run.hours:.3g}",
            "held out" if run.held_out else "",
        ]
        for run in plan.runs
    ]
    head = ("run", "C", "N", "D", "D/N", "steps", "from step", "LR", "hours", "")
    hours, chips = sum(run.hours for run in plan.runs), plan.study.hardware.chips
    unshared = sum(run.hours * run.steps / run.new_steps for run in plan.runs)
    total = (
        f"{len(plan.runs)} runs, {hours:.4g} hours ({hours * chips:.4g} chip hours) by {plan.hours_from}; "
        f"{unshared:.4g} hours if no steps were shared"
    )
    return f"{_aligned(head, rows)}\n\n{total}"


def outcome_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return how many runs ended in which way."""
    counts = collections.Counter(row["outcome"] for row in rows)
    return f"{len(rows)} runs: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items())


def fit_table(result: FitResult, *, title: str) -> str:
    """Return the numbers of every approach with their intervals, the optima, and the warnings."""
    found = to_json(result)
    rows = []
    for name in FIT_NAMES:
        fit = found[name]
        if fit is None:
            continue
        rows.append([name, *(_number(fit[key]) for key in _NUMBERS)])
        if "intervals" in fit:
            bounds = [fit["intervals"].get(key) for key in _NUMBERS]
            rows.append(["", *("" if b is None or None in b else f"{b[0]:.4g}..{b[1]:.4g}" for b in bounds)])
    lines = [f"{title}: {len(result.points)} points", _aligned(("", *_NUMBERS), rows)]
    lines += [
        f"  C = {one['budget']:.3g}: N* = {one['params']:.4g}, D* = {one['tokens']:.4g}, loss {one['loss']:.4f} (VPNLS)"
        for one in found["vpnls"]["optimal"]
        if one["loss"] is not None
    ]
    warnings = [*found["warnings"], *(f"{n}: {w}" for n in FIT_NAMES if found[n] for w in found[n]["warnings"])]
    return "\n".join([*lines, *(f"  WARNING: {warning}" for warning in warnings), ""])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"
