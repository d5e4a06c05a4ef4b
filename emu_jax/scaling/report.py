"""The report page of a fit: tables, warnings and every figure in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emu_jax.reporting.page import Section, escape, table, write_page
from emu_jax.scaling.fit import FIT_NAMES, FitResult, to_json
from emu_jax.scaling.plots import FIGURES, TITLES, draw

_NUMBERS = ("E", "A", "alpha", "B", "beta", "a", "b", "gamma")
_TWO_COLUMNS = "grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr))"
_INTRO = "L(N, D) = E + A / N^alpha + B / D^beta; N* grows as C^a, D* as C^b, and L(C) - E falls as C^-gamma."


def write_scaling_report(
    path: Path, results: Mapping[str, FitResult], *, title: str, lead: str, rows: Sequence[dict[str, Any]] = ()
) -> None:
    """Write the page.

    Args:
      path: the .html file.
      results: name of a loss or of a group -> its fit.
      title: of the page.
      lead: one sentence below it.
      rows: of the study's table, for the list of runs; none without a study.
    """
    sections = []
    for name, result in results.items():
        prefix = f"{name}: " if len(results) > 1 else ""
        sections += _sections(result, prefix)
    if rows:
        sections.append(Section("Runs", _runs_table(rows), "Every run that has begun, as it ended."))
    write_page(path, sections, title=title, lead=lead)


def _sections(result: FitResult, prefix: str) -> list[Section]:
    found = to_json(result)
    warnings = [
        *found["warnings"],
        *(f"{TITLES[name]}: {text}" for name in FIT_NAMES if found[name] for text in found[name]["warnings"]),
    ]
    notes = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in warnings)
    charts = "".join(
        f'<figure class="chart"><figcaption>{escape(name)}</figcaption>{draw(name, result, prefix=prefix)}'
        f"<p>{escape(note)}</p></figure>"
        for name, (note, _) in FIGURES.items()
    )
    level = f"{found['level']:.0%} intervals of {found['bootstraps']} bootstraps."
    return [
        Section(f"{prefix}The law", _law_table(found) + notes, f"{_INTRO} {found['points']} points; {level}"),
        Section(f"{prefix}Optimal models", _optimum_table(found), "The best split of a budget, and its loss."),
        Section(f"{prefix}Held-out budget", _held_out_table(found), _held_out_intro(found)),
        Section(f"{prefix}Figures", f'<div class="charts" style="{_TWO_COLUMNS}">{charts}</div>'),
    ]


def _law_table(found: Mapping[str, Any]) -> str:
    names = [name for name in FIT_NAMES if found[name] is not None]
    rows = [
        [key, *(_value(found[name][key], found[name].get("intervals", {}).get(key)) for name in names)]
        for key in _NUMBERS
    ]
    return table(["", *(TITLES[name] for name in names)], rows)


def _optimum_table(found: Mapping[str, Any]) -> str:
    rows = []
    for name in FIT_NAMES:
        for one in (found[name] or {}).get("optimal", ()):
            intervals = one.get("intervals", {})
            cells = (_value(one[key], intervals.get(key)) for key in ("params", "tokens", "loss"))
            rows.append([TITLES[name], f"{one['budget']:.3g}", *cells])
    return table(["", "C", "N*", "D*", "loss"], rows)


def _held_out_intro(found: Mapping[str, Any]) -> str:
    held_out = found["held_out"]
    if held_out is None:
        return ""
    inside = held_out["fraction_inside"]
    observed = "" if inside is None else f" {inside:.0%} of the observed losses lie in their intervals."
    return f"C = {held_out['budget']:.3g}, predicted by VPNLS from points that leave it out.{observed}"


def _held_out_table(found: Mapping[str, Any]) -> str:
    held_out = found["held_out"]
    if held_out is None:
        return ""
    rows = [
        [
            f"{one['params']:.3g}",
            f"{one['tokens']:.3g}",
            "not run yet" if one["loss"] is None else f"{one['loss']:.4f}",
            _value(one["predicted"], [one["low"], one["high"]]),
        ]
        for one in sorted(held_out["points"], key=lambda one: one["params"])
    ]
    return table(["N", "D", "observed", "predicted"], rows)


def _runs_table(rows: Sequence[dict[str, Any]]) -> str:
    names = ("id", "outcome", "budget", "params", "tokens", "learning_rate", "seed", "loss", "commit")
    return table(names, [[_cell(row.get(name)) for name in names] for row in rows])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else escape(str(value))


def _value(value: float | None, bounds: Sequence[float | None] | None) -> str:
    """Return "0.34 (0.33, 0.36)" with the interval in smaller type."""
    if value is None:
        return "–"
    text = f"{value:.4g}"
    if bounds is not None and None not in bounds:
        text += f"<br><small>{bounds[0]:.3g} – {bounds[1]:.3g}</small>"
    return text
