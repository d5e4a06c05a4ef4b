"""From a study to the list of its runs, with their flags, sizes, FLOPs and hours.

The runs of one width and seed are a chain: a run starts from the checkpoint of the run before it at the step where that
one's cooldown began, so the steps at the constant learning rate are trained once for all numbers of tokens (Hagele et
al., arXiv 2405.18392).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from emu_jax.config import from_config_dict, to_dict
from emu_jax.errors import UserError
from emu_jax.scaling.ladder import Counts, Sizes, count
from emu_jax.scaling.study import Form, StudyConfig
from emu_jax.training.runs.emu import EmuRunConfig

SecondsPerStep = Callable[[Sizes], float]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
      id: of the run, and the name of its folder.
      config: the training config.
      overrides: field of the config -> value, as text.
      width: of the decoder.
      params: N, of the full model, as `Counts.total`.
      decoder_params: N of the decoder and its heads.
      image_params_tokens: Nv Dv + Nc Dc of one image, so that C = 6 (N D + this x images).
      tokens: D, decoder tokens that are no padding, at the study's `fill`.
      budget: C in FLOPs.
      point: of the grid that it belongs to.
      steps: optimizer steps in all.
      cooldown_from: the step at which its learning rate begins to fall.
      learning_rate: peak.
      seed: of the run.
      held_out: left out of the fit.
      parent: id of the run that it starts from; None starts new.
      start: step of the parent's checkpoint.
      hours: expected, of the steps that this run itself trains.
    """

    id: str
    config: str
    overrides: dict[str, str]
    width: int
    params: int
    decoder_params: int
    image_params_tokens: int
    tokens: float
    budget: float
    point: float
    steps: int
    cooldown_from: int
    learning_rate: float
    seed: int
    held_out: bool
    parent: str | None
    start: int
    hours: float

    @property
    def new_steps(self) -> int:
        """Steps that are not the parent's."""
        return self.steps - self.start

    def flags(self) -> list[str]:
        """Return the arguments of `train`, without --workdir."""
        return [f"--config={self.config}", *(f"--config.{name}={value}" for name, value in self.overrides.items())]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study and its runs; a parent comes before its children."""

    study: StudyConfig
    hours_from: str
    runs: tuple[Run, ...]

    def chains(self) -> list[list[Run]]:
        """Return the runs of each width and seed, in the order in which they must run."""
        chains: dict[str, list[Run]] = {}
        for run in self.runs:
            root = run.id
            for key, chain in chains.items():
                if run.parent in {one.id for one in chain}:
                    root = key
            chains.setdefault(root, []).append(run)
        return list(chains.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts that `plan_from_json` reads."""
        return to_dict(self)


def plan_from_json(value: Any) -> Plan:
    """Return the plan of a plan.json."""
    return from_config_dict(Plan, value, path="plan")


@dataclasses.dataclass(frozen=True)
class _Length:
    point: float
    steps: int
    tokens: float
    budget: float


def make_plan(study: StudyConfig, base: EmuRunConfig, *, seconds_per_step: SecondsPerStep | None = None) -> Plan:
    """Lay out the runs of a study.

    Args:
      study: what to run.
      base: the run of `study.config`, with its vocabulary.
      seconds_per_step: of a model of these sizes; None divides C by `study.hardware.flops_per_second`.

    Raises:
      UserError: no run is left, or the grid leaves a width without runs.
    """
    runs: list[Run] = []
    for width in sorted(set(study.widths)):
        sizes = study.ladder.sizes(width)
        counts = count(_resized(base, sizes).model)
        lengths = list(_lengths(study, base, counts))
        seconds = None if seconds_per_step is None or not lengths else seconds_per_step(sizes)
        for seed in study.seeds:
            chosen = [length for length in lengths if seed in study.seeds_at(length.point)]
            runs += _chain(study, width=width, sizes=sizes, counts=counts, lengths=chosen, seed=seed, seconds=seconds)
    if not runs:
        raise UserError(
            "No run is left: every one would be shorter than min_steps or outside of tokens_per_param. Take larger "
            "budgets, smaller widths or smaller batches."
        )
    hours_from = "the compiler's estimate" if seconds_per_step else f"{study.hardware.flops_per_second:.3g} FLOP/s"
    return Plan(study, f"{hours_from} on {study.hardware.name}", tuple(runs))


def _resized(base: EmuRunConfig, sizes: Sizes) -> EmuRunConfig:
    parts: dict[str, dict[str, int]] = {}
    for name, value in sizes.items():
        part, field = name.split(".")
        parts.setdefault(part, {})[field] = value
    changed = {part: dataclasses.replace(getattr(base.model, part), **fields) for part, fields in parts.items()}
    return dataclasses.replace(base, model=dataclasses.replace(base.model, **changed))


def _lengths(study: StudyConfig, base: EmuRunConfig, counts: Counts) -> Iterable[_Length]:
    """Return the lengths of one size, shortest first."""
    batch = base.data.batch
    tokens_per_step = batch.batch_size * batch.length * study.fill
    flops_per_token = counts.flops(tokens=1.0, images=study.images_per_token)
    for point in study.grid:
        tokens = point / flops_per_token if study.form is Form.ISOFLOP else point
        steps = round(tokens / tokens_per_step)
        tokens = steps * tokens_per_step
        low, high = study.tokens_per_param
        in_range = study.form is Form.FIXED_TOKENS or low <= tokens / counts.total <= high
        if steps >= study.min_steps and in_range:
            yield _Length(point, steps, tokens, tokens * flops_per_token)


def _chain(
    study: StudyConfig,
    *,
    width: int,
    sizes: Sizes,
    counts: Counts,
    lengths: list[_Length],
    seed: int,
    seconds: float | None,
) -> list[Run]:
    """Return the runs of one width and seed, each from the one before."""
    learning_rate = study.learning_rate * (study.base_width / width) ** study.learning_rate_exponent
    learning_rate = float(f"{learning_rate:.4g}")
    runs: list[Run] = []
    for length in lengths:
        cooldown_from = length.steps - max(round(study.cooldown_fraction * length.steps), 1)
        parent = runs[-1] if runs else None
        start = 0 if parent is None else parent.cooldown_from
        new_steps = length.steps - start
        if seconds is None:
            hours = length.budget * new_steps / length.steps / study.hardware.flops_per_second / 3600
        else:
            hours = seconds * new_steps / 3600
        overrides: dict[str, object] = {
            **{f"model.{name}": value for name, value in sizes.items()},
            "train.steps": length.steps,
            "train.seed": seed,
            "train.optimizer.learning_rate": learning_rate,
            "train.optimizer.schedule": "wsd",
            "train.optimizer.warmup_steps": study.warmup_steps,
            "train.optimizer.cooldown_fraction": study.cooldown_fraction,
            "train.checkpoint.keep_steps": (cooldown_from,),  # also of the last run: a plan may be extended
            **dict(override.split("=", 1) for override in study.overrides),
        }
        runs.append(
            Run(
                id=f"w{width}-{_short(length.point)}-s{seed}",
                config=study.config,
                overrides={name: str(value) for name, value in overrides.items()},
                width=width,
                params=counts.total,
                decoder_params=counts.decoder,
                image_params_tokens=counts.image_params_tokens,
                tokens=length.tokens,
                budget=length.budget,
                point=length.point,
                steps=length.steps,
                cooldown_from=cooldown_from,
                learning_rate=learning_rate,
                seed=seed,
                held_out=study.is_held_out(length.point),
                parent=None if parent is None else parent.id,
                start=start,
                hours=hours,
            )
        )
    return runs


def _short(value: float) -> str:
    """Return 3e11 as "3e11" and 1.5e9 as "1.5e9"."""
    mantissa, power = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(power)}"
