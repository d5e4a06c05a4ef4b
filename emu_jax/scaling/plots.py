"""The figures of a fit, drawn by matplotlib as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from emu_jax.scaling.fit import FitResult, log_residuals, predict
from emu_jax.scaling.isoflop import PowerLaws, parabola
from emu_jax.scaling.law import Law

TITLES = {"vpnls": "VPNLS", "approach1": "Approach 1", "approach2": "Approach 2", "approach3": "Approach 3"}
COLORS = {"vpnls": "#2463b0", "approach1": "#5b6470", "approach2": "#c8611a", "approach3": "#1c8a61"}
_FEW_SIZES = 10  # of a legend

Draw = Callable[[FitResult, Axes], None]


def loss_against_flops(result: FitResult, axes: Axes) -> None:
    """Draw L against C for each size, with the frontier of VPNLS and the power law without a floor."""
    points = result.points
    sizes = np.unique(np.round(np.log(points.params), 1))
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(sizes)))
    for number, (size, color) in enumerate(zip(sizes, colors, strict=True)):
        mask = np.round(np.log(points.params), 1) == size
        order = np.argsort(points.budget[mask])
        labeled = number % max(len(sizes) // _FEW_SIZES, 1) == 0
        label = f"N = {_short(np.exp(np.log(points.params[mask]).mean()))}" if labeled else None
        axes.plot(points.budget[mask][order], points.loss[mask][order], "o-", color=color, ms=3.5, lw=0.8, label=label)
    budgets = np.geomspace(points.budget.min(), max(result.budgets), 100)
    law = result.fits["vpnls"].law
    if law is not None and law.has_optimum:
        axes.plot(budgets, law.frontier.loss(budgets), "k-", lw=1.6, label="frontier (VPNLS)")
    if result.kaplan is not None:
        c0, gamma = result.kaplan
        axes.plot(budgets, (c0 / budgets) ** gamma, "k:", lw=1.2, label="power law, E = 0")
    axes.set(xscale="log", yscale="log", xlabel="training FLOPs C", ylabel="loss")
    axes.legend(fontsize=7, ncols=2)


def isoflop_curves(result: FitResult, axes: Axes) -> None:
    """Draw L against N for each budget, with the parabolas of Approach 2 and the curves of VPNLS."""
    curves = result.points.curves()
    colors = matplotlib.colormaps["plasma"](np.linspace(0, 0.88, len(curves)))
    law = result.fits["vpnls"].law
    for (budget, curve), color in zip(curves, colors, strict=True):
        axes.plot(curve.params, curve.loss, "o", color=color, ms=4, label=f"C = {budget:.2g}")
        sizes = np.geomspace(curve.params.min(), curve.params.max(), 60)
        found = parabola(curve.params, curve.loss)
        if found is not None:
            axes.plot(sizes, np.polyval(found[2], np.log(sizes)), "-", color=color, lw=1)
            axes.plot(np.exp(found[0]), found[1], "*", color=color, ms=10, mec="k", mew=0.5)
        if law is not None:
            product = np.median(curve.params * curve.tokens)
            axes.plot(sizes, law.loss(sizes, product / sizes), "--", color=color, lw=0.9, alpha=0.8)
    axes.set(xscale="log", xlabel="parameters N", ylabel="loss")
    axes.legend(fontsize=7, ncols=2)


def optimal_size(result: FitResult, axes: Axes) -> None:
    """Draw N* against C by every approach, with its bootstraps."""
    _optima(result, axes, 0, "parameters N*")


def optimal_data(result: FitResult, axes: Axes) -> None:
    """Draw D* against C by every approach, with its bootstraps."""
    _optima(result, axes, 1, "tokens D*")


def _optima(result: FitResult, axes: Axes, which: int, label: str) -> None:
    budgets = np.geomspace(result.points.budget.min(), max(result.budgets), 40)
    for name, fit in result.fits.items():
        if fit.estimate is None:
            continue
        line = np.array([predict(fit.estimate, budget)[which] for budget in budgets])
        exponent = _exponent(fit.estimate, which)
        axes.plot(budgets, line, color=COLORS[name], lw=1.5, label=f"{TITLES[name]}: C^{exponent:.3f}")
        lines = np.array(
            [[predict(one, budget)[which] for budget in budgets] for one in fit.samples if one is not None]
        )
        if len(lines) and np.isfinite(lines).any():
            tail = 50 * (1 - result.options.level)
            low, high = np.nanpercentile(lines, [tail, 100 - tail], axis=0)
            axes.fill_between(budgets, low, high, color=COLORS[name], alpha=0.12, lw=0)
        if isinstance(fit.estimate, PowerLaws):
            values = [(m.budget, (m.params, m.tokens)[which]) for m in fit.estimate.minima]
            axes.plot(*zip(*values, strict=True), "o", color=COLORS[name], ms=4)
    axes.set(xscale="log", yscale="log", xlabel="training FLOPs C", ylabel=label)
    axes.legend(fontsize=7)


def _exponent(estimate: Law | PowerLaws, which: int) -> float:
    if isinstance(estimate, PowerLaws):
        return (estimate.size, estimate.data)[which][1]
    return (estimate.a, estimate.b)[which] if estimate.has_optimum else float("nan")


def predicted_against_observed(result: FitResult, axes: Axes) -> None:
    """Draw the loss that the law gives against the observed one; held-out points with their intervals."""
    points = result.points
    for name in ("vpnls", "approach3"):
        law = result.fits[name].law
        if law is not None:
            predicted = law.loss(points.params, points.tokens)
            axes.plot(points.loss, predicted, "o", color=COLORS[name], ms=3.5, alpha=0.6, label=TITLES[name])
    held_out = result.held_out
    if held_out is not None and np.isfinite(held_out.points.loss).any():
        spread = np.stack([held_out.predicted - held_out.low, held_out.high - held_out.predicted])
        axes.errorbar(
            held_out.points.loss, held_out.predicted, np.maximum(spread, 0), fmt="s", color="#b8323f", ms=4, lw=1,
            label="held out, predicted from smaller budgets",
        )  # fmt: skip
    ends = [points.loss.min(), points.loss.max()]
    axes.plot(ends, ends, "k-", lw=0.8)
    axes.set(xlabel="observed loss", ylabel="predicted loss")
    axes.legend(fontsize=7)


def residuals(result: FitResult, axes: Axes) -> None:
    """Draw ln(observed / predicted) against C."""
    for name in ("vpnls", "approach3"):
        law = result.fits[name].law
        if law is not None:
            values = 100 * log_residuals(result.points, law)
            axes.plot(result.points.budget, values, "o", color=COLORS[name], ms=3.5, alpha=0.6, label=TITLES[name])
    axes.axhline(0, color="k", lw=0.8)
    axes.set(xscale="log", xlabel="training FLOPs C", ylabel="ln(observed / predicted), in percent")
    axes.legend(fontsize=7)


def exponent_cloud(result: FitResult, axes: Axes) -> None:
    """Draw alpha and beta of every bootstrap sample."""
    for name in ("vpnls", "approach3"):
        laws = [one for one in result.fits[name].samples if isinstance(one, Law)]
        axes.plot([one.alpha for one in laws], [one.beta for one in laws], ".", color=COLORS[name], alpha=0.5)
        law = result.fits[name].law
        if law is not None:
            axes.plot(law.alpha, law.beta, "P", color=COLORS[name], ms=9, mec="k", label=TITLES[name])
    axes.set(xlabel="alpha", ylabel="beta")
    axes.legend(fontsize=7)


def allocation_cloud(result: FitResult, axes: Axes) -> None:
    """Draw the exponent a of N* and the floor E of every bootstrap sample."""
    for name, fit in result.fits.items():
        laws = [one.law if isinstance(one, PowerLaws) else one for one in fit.samples]
        found = [one for one in laws if one is not None and one.has_optimum]
        axes.plot([one.a for one in found], [one.E for one in found], ".", color=COLORS[name], alpha=0.5)
        if fit.law is not None and fit.law.has_optimum:
            axes.plot(fit.law.a, fit.law.E, "P", color=COLORS[name], ms=9, mec="k", label=TITLES[name])
    axes.set(xlabel="a, exponent of N*", ylabel="E")
    axes.legend(fontsize=7)


FIGURES: dict[str, tuple[str, Draw]] = {
    "Loss against FLOPs": ("Runs of one size are joined; the line is the lowest loss of a budget.", loss_against_flops),
    "IsoFLOP curves": ("Solid: parabolas with their minima. Dashed: VPNLS at the same budget.", isoflop_curves),
    "Optimal parameters": ("Lines: fits. Bands: bootstrap. Dots: minima of Approaches 1 and 2.", optimal_size),
    "Optimal tokens": ("As for the parameters.", optimal_data),
    "Predicted against observed": ("Held-out points were not used for their prediction.", predicted_against_observed),
    "Residuals": ("Structure in them is misfit that no interval covers.", residuals),
    "Bootstrap: exponents": ("One dot for each sample; crosses: all points.", exponent_cloud),
    "Bootstrap: allocation and floor": ("One dot for each sample; crosses: all points.", allocation_cloud),
}


def draw(name: str, result: FitResult, *, prefix: str = "") -> str:
    """Return the figure `name` of FIGURES as an SVG element; `prefix` makes its ids unique on a page."""
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 9, "svg.hashsalt": name}):
        figure = Figure(figsize=(6.2, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.grid(alpha=0.25, lw=0.5)
        FIGURES[name][1](result, axes)
        FigureCanvasSVG(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _unique_ids(file.getvalue()[file.getvalue().index("<svg") :], prefix=re.sub(r"\W+", "-", f"{prefix}{name}"))


def _unique_ids(svg: str, *, prefix: str) -> str:
    """Prefix the ids of an SVG element, so that several share one page."""
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    return re.sub(r"url\(#", f"url(#{prefix}-", svg)


def _short(value: float) -> str:
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"
