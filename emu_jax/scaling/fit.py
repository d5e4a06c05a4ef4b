"""Fit one table by all four approaches, with bootstrap intervals, predictions and warnings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from emu_jax.bounds import Checked, CountOrZero, Fraction, NonNegative, Positive, Seed
from emu_jax.errors import UserError
from emu_jax.scaling.bootstrap import draw_counts, interval
from emu_jax.scaling.huber import fit_huber, fit_huber_many
from emu_jax.scaling.isoflop import (
    PowerLaws,
    fit_envelope,
    fit_kaplan,
    fit_parabolas,
    parabola_warnings,
)
from emu_jax.scaling.law import Law
from emu_jax.scaling.points import Points
from emu_jax.scaling.vpnls import fit_vpnls, fit_vpnls_many
from emu_jax.typing import Float, Int

FIT_NAMES = ("vpnls", "approach1", "approach2", "approach3")
PARAMETRIC = ("vpnls", "approach3")
LEAST_TRAINED = 6  # points that a fit needs


@dataclasses.dataclass(frozen=True)
class FitOptions(Checked):
    """Options of a fit.

    Attributes:
      pinned: the value of E; None fits it.
      bootstraps: samples of the points; 0 gives no intervals.
      level: of the intervals.
      seed: of the samples.
      budgets: C at which optima and losses are predicted; empty: the largest budget and ten times it.
    """

    pinned: NonNegative | None = None
    bootstraps: CountOrZero = 100
    level: Fraction = 0.9
    seed: Seed = 0
    budgets: tuple[Positive, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.level < 1:
            raise UserError(f"The level of the intervals must lie between 0 and 1, not {self.level}.")


@dataclasses.dataclass(frozen=True)
class Fit:
    """One approach on one table, with its bootstraps.

    Attributes:
      estimate: a law (VPNLS, Approach 3) or power laws (Approaches 1 and 2); None where there is none.
      samples: the same for each bootstrap sample.
      warnings: what biases it.
    """

    estimate: Law | PowerLaws | None
    samples: tuple[Law | PowerLaws | None, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def law(self) -> Law | None:
        """The law of the estimate."""
        return law_of(self.estimate)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Points that were not fitted, predicted by VPNLS from others.

    Attributes:
      points: what was held out; a loss is NaN where the run is still to come.
      law: the fit to the others.
      predicted: its loss for each.
      low, high: the predictive interval: of the law, and of the noise of one run around it.
    """

    points: Points
    law: Law
    predicted: Float[np.ndarray, "n"]
    low: Float[np.ndarray, "n"]
    high: Float[np.ndarray, "n"]

    @property
    def inside(self) -> np.ndarray:
        """True where the observed loss is inside the interval."""
        return (self.points.loss >= self.low) & (self.points.loss <= self.high)


@dataclasses.dataclass(frozen=True)
class FitResult:
    """All approaches on one table."""

    points: Points
    options: FitOptions
    fits: dict[str, Fit]
    held_out: HeldOut | None
    kaplan: tuple[float, float] | None
    warnings: tuple[str, ...]

    @property
    def budgets(self) -> tuple[float, ...]:
        """C at which optima are predicted."""
        largest = float(self.points.budget.max())
        return self.options.budgets or (largest, 10 * largest)


def law_of(estimate: Law | PowerLaws | None) -> Law | None:
    """Return the law of an estimate, where it has one."""
    return estimate.law if isinstance(estimate, PowerLaws) else estimate


def fit_points(points: Points, options: FitOptions | None = None, *, held_out: Points | None = None) -> FitResult:
    """Fit `points` by VPNLS and Approaches 1, 2 and 3.

    Args:
      points: all are fitted.
      options: see FitOptions.
      held_out: points to predict from `points`; None predicts the largest budget from the smaller ones.
    """
    options = options or FitOptions()
    counts = draw_counts(len(points), samples=options.bootstraps, seed=options.seed)
    pinned = options.pinned
    vpnls, huber = fit_vpnls(points, pinned=pinned), fit_huber(points, pinned=pinned)
    samples = [points[np.repeat(np.arange(len(points)), count)] for count in counts]
    losses = np.tile(points.loss, (len(counts), 1))
    envelope, parabolas = fit_envelope(points, pinned=pinned), fit_parabolas(points, pinned=pinned)
    target = max((*options.budgets, 10 * float(points.budget.max())))
    warned = () if parabolas is None else tuple(parabola_warnings(points, parabolas, vpnls, target=target))
    fits = {
        "vpnls": Fit(vpnls, _vpnls_samples(points, losses, counts, pinned)),
        "approach1": Fit(envelope, tuple(fit_envelope(sample, pinned=pinned) for sample in samples)),
        "approach2": Fit(parabolas, tuple(fit_parabolas(sample, pinned=pinned) for sample in samples), warned),
        "approach3": Fit(huber, tuple(fit_huber_many(points, counts, starts=[huber, vpnls], pinned=pinned))),
    }
    return FitResult(
        points=points,
        options=options,
        fits=fits,
        held_out=predict_held_out(*points.split_largest(), options)
        if held_out is None
        else predict_held_out(points, held_out, options),
        kaplan=None if envelope is None else fit_kaplan(envelope.minima),
        warnings=_warnings(points, vpnls, envelope, parabolas),
    )


def _vpnls_samples(
    points: Points, losses: np.ndarray, counts: Int[np.ndarray, "s n"], pinned: float | None
) -> tuple[Law, ...]:
    if not len(counts):
        return ()
    return tuple(fit_vpnls_many(points, losses, counts.astype(float), pinned=pinned))


def predict_held_out(trained: Points, held_out: Points, options: FitOptions) -> HeldOut | None:
    """Predict `held_out` from `trained`; None without bootstraps, with too few points, or with nothing to predict."""
    if len(trained) < LEAST_TRAINED or not options.bootstraps or not len(held_out):
        return None
    law = fit_vpnls(trained, pinned=options.pinned)
    counts = draw_counts(len(trained), samples=options.bootstraps, seed=options.seed)
    losses = np.tile(trained.loss, (len(counts), 1))
    laws = _vpnls_samples(trained, losses, counts, options.pinned)
    freedom = max(len(trained) - 5, 1)
    residuals = np.log(trained.loss / law.loss(trained.params, trained.tokens)) * math.sqrt(len(trained) / freedom)
    rng = np.random.default_rng(options.seed)
    draws = np.stack(
        [
            one.loss(held_out.params, held_out.tokens) * np.exp(rng.choice(residuals, len(held_out)))
            for one in laws
            for _ in range(10)
        ]
    )
    bounds = [interval(column, level=options.level, num_points=len(trained)) for column in draws.T]
    low, high = np.array(bounds).T
    return HeldOut(held_out, law, law.loss(held_out.params, held_out.tokens), low, high)


def _warnings(points: Points, law: Law, envelope: PowerLaws | None, parabolas: PowerLaws | None) -> tuple[str, ...]:
    found = []
    curves = points.curves()
    if len(curves) < 3:
        found.append(f"{len(curves)} budgets only: the exponents of Approaches 1 and 2 need at least 3")
    if parabolas is None:
        found.append("no two budgets have a parabola with a minimum: there is no Approach 2")
    if envelope is not None and not all(minimum.inside for minimum in envelope.minima):
        count = sum(not minimum.inside for minimum in envelope.minima)
        found.append(f"Approach 1: the best run of {count} budgets is the smallest or the largest model that was run")
    for name, value in (("A", law.A), ("B", law.B), ("E", law.E)):
        if value == 0:
            found.append(f"VPNLS: {name} is 0, so these points do not determine it")
    if np.ptp(np.log(points.params)) < math.log(4) or np.ptp(np.log(points.tokens)) < math.log(4):
        found.append("sizes or tokens span less than a factor of 4: the exponents are hardly determined")
    return tuple(found)


def to_json(result: FitResult) -> dict[str, Any]:
    """Return the result as plain numbers: `vpnls`, `approach1`, `approach2`, `approach3` and the rest."""
    return {
        "points": len(result.points),
        "flops_per_param_token": result.points.flops_per_param_token,
        "level": result.options.level,
        "bootstraps": result.options.bootstraps,
        "pinned_E": result.options.pinned,
        **{name: _fit_json(result, name) for name in FIT_NAMES},
        "kaplan": None if result.kaplan is None else {"C0": result.kaplan[0], "gamma": result.kaplan[1]},
        "held_out": None if result.held_out is None else _held_out_json(result.held_out),
        "warnings": list(result.warnings),
    }


def _fit_json(result: FitResult, name: str) -> dict[str, Any] | None:
    fit = result.fits[name]
    if fit.estimate is None:
        return None
    numbers = _numbers(fit.estimate)
    found: dict[str, Any] = dict(numbers)
    samples = [_numbers(sample) for sample in fit.samples if sample is not None]
    if samples:
        found["intervals"] = {
            key: _interval(result, [sample[key] for sample in samples])
            for key, value in numbers.items()
            if value is not None
        }
    found["optimal"] = [_optimum_json(result, fit, budget) for budget in result.budgets]
    law = fit.law
    if law is not None:
        found["rmse_log"] = float(np.sqrt(np.mean(log_residuals(result.points, law) ** 2)))
    if isinstance(fit.estimate, PowerLaws):
        found["minima"] = [dataclasses.asdict(minimum) for minimum in fit.estimate.minima]
    found["warnings"] = list(fit.warnings)
    return found


def _numbers(estimate: Law | PowerLaws) -> dict[str, float | None]:
    """Return E, A, alpha, B, beta, the exponents a, b and gamma, and the coefficients of N* and D*."""
    law = law_of(estimate)
    found: dict[str, float | None] = {
        name: None if law is None else getattr(law, name) for name in ("E", "A", "alpha", "B", "beta")
    }
    if isinstance(estimate, PowerLaws):
        frontier = estimate.frontier
        if law is None and frontier is not None:
            found["E"] = frontier.E
        found |= {"a": estimate.size[1], "b": estimate.data[1]}
        found |= {"N_coefficient": estimate.size[0], "D_coefficient": estimate.data[0]}
        found["gamma"] = None if frontier is None else frontier.gamma
        return found
    if not estimate.has_optimum:
        return found | dict.fromkeys(("a", "b", "N_coefficient", "D_coefficient", "gamma"))
    params, tokens = estimate.optimum(1.0)
    found |= {"a": estimate.a, "b": estimate.b, "N_coefficient": float(params), "D_coefficient": float(tokens)}
    found["gamma"] = estimate.gamma
    return found


def predict(estimate: Law | PowerLaws | None, budget: float) -> tuple[float, float, float]:
    """Return (N*, D*, loss there) of a budget; NaN where the estimate has none."""
    if isinstance(estimate, PowerLaws):
        params, tokens = estimate.optimum(budget)
        loss = math.nan if estimate.frontier is None else float(estimate.frontier.loss(budget))
        return params, tokens, loss
    if estimate is None or not estimate.has_optimum:
        return math.nan, math.nan, math.nan
    params, tokens = map(float, estimate.optimum(budget))
    return params, tokens, float(estimate.loss(params, tokens))


def _optimum_json(result: FitResult, fit: Fit, budget: float) -> dict[str, Any]:
    names = ("params", "tokens", "loss")
    found: dict[str, Any] = {"budget": budget}
    found |= {name: _finite(value) for name, value in zip(names, predict(fit.estimate, budget), strict=True)}
    samples = [predict(sample, budget) for sample in fit.samples]
    if samples:
        found["intervals"] = {
            name: _interval(result, values) for name, values in zip(names, zip(*samples, strict=True), strict=True)
        }
    return found


def _interval(result: FitResult, values: Sequence[float | None]) -> list[float | None]:
    numbers = np.array([math.nan if value is None else value for value in values])
    bounds = interval(numbers, level=result.options.level, num_points=len(result.points))
    return [_finite(bound) for bound in bounds]


def _held_out_json(held_out: HeldOut) -> dict[str, Any]:
    points = held_out.points
    observed = np.isfinite(points.loss)
    columns = zip(
        points.params, points.tokens, points.loss, held_out.predicted, held_out.low, held_out.high, strict=True
    )
    names = ("params", "tokens", "loss", "predicted", "low", "high")
    return {
        "budget": float(points.budget.max()),
        "law": {name: getattr(held_out.law, name) for name in ("E", "A", "alpha", "B", "beta")},
        "points": [dict(zip(names, map(_finite, row), strict=True)) for row in columns],
        "fraction_inside": _finite(held_out.inside[observed].mean()) if observed.any() else None,
        "mean_log_error": _finite(np.log(points.loss / held_out.predicted)[observed].mean())
        if observed.any()
        else None,
    }


def log_residuals(points: Points, law: Law) -> Float[np.ndarray, "n"]:
    """Return ln(observed / predicted) of each point."""
    return np.log(points.loss / law.loss(points.params, points.tokens))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
