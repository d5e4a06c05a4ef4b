"""The definition of a scaling study: a ladder of sizes, a grid of budgets or tokens, and what all runs share."""

from __future__ import annotations

import dataclasses
import enum
from typing import Annotated

from emu_jax.bounds import (
    Between,
    Checked,
    Count,
    CountOrZero,
    Fraction,
    NonNegative,
    Positive,
    Rate,
    Seed,
    Size,
    VocabSize,
)
from emu_jax.errors import UserError
from emu_jax.scaling.ladder import LadderConfig


class Form(enum.Enum):
    """Form of the grid."""

    ISOFLOP = "isoflop"  # each size at each budget, with the tokens that the budget leaves
    FIXED_TOKENS = "fixed_tokens"  # each size at each number of tokens


@dataclasses.dataclass(frozen=True)
class HardwareConfig(Checked):
    """Hardware of the runs, for the hours of the plan.

    Attributes:
      name: for the table, such as "H100" or "v5p:2x2x1".
      flops_per_second: sustained, of all chips of a run together; `plan --topology` takes the compiler's estimate
        instead.
      chips: of one run, for chip hours.
    """

    name: str
    flops_per_second: Positive
    chips: Count = 1


@dataclasses.dataclass(frozen=True)
class StudyConfig(Checked):
    """A study.

    Attributes:
      config: the training config that all runs share, such as "configs/scaling.py:cpu".
      form: ISOFLOP takes `budgets`, FIXED_TOKENS takes `tokens`.
      widths: decoder widths, one for each size; the ladder gives the rest.
      hardware: see HardwareConfig.
      ladder: the rule from a width to all sizes.
      budgets: training FLOPs, C = 6 (Nv Dv + Nc Dc + N D).
      tokens: decoder tokens that a run sees.
      tokens_per_param: (least, most) D over N of an ISOFLOP run; pairs outside are left out.
      held_out: the largest budget (or number of tokens) is planned, marked, and left out of the fit.
      seeds: of parameters, dropout and data order; all of them at `repeated`, the first one elsewhere.
      repeated: the budget (or number of tokens) that runs once for each seed; None repeats none.
      learning_rate: peak at `base_width`; other widths take learning_rate (base_width / width)^learning_rate_exponent.
      base_width: see `learning_rate`.
      learning_rate_exponent: 1 for the standard parametrization with Adam, 0 where the parametrization transfers.
      warmup_steps: of every run; must be before the first cooldown.
      cooldown_fraction: of a run's steps, at its end; runs of one size and seed share all steps before it.
      min_steps: runs that would be shorter are left out.
      fill: fraction of a row's tokens that is no padding; `collect` reports the measured one.
      images_per_token: images over decoder tokens.
      vocab_size: of the model; 0 reads it from the config's tokenizer.
      overrides: further fields of the training config, such as ("train.log_every=10",).
    """

    config: str
    widths: tuple[Size, ...]
    hardware: HardwareConfig
    form: Form = Form.ISOFLOP
    ladder: LadderConfig = dataclasses.field(default_factory=LadderConfig)
    budgets: tuple[Positive, ...] = ()
    tokens: tuple[Positive, ...] = ()
    tokens_per_param: tuple[NonNegative, NonNegative] = (1.0, 1000.0)
    held_out: bool = False
    seeds: tuple[Seed, ...] = (0,)
    repeated: Positive | None = None
    learning_rate: Rate = 1e-3
    base_width: Size = 256
    learning_rate_exponent: Annotated[float, Between(-10.0, 10.0)] = 1.0
    warmup_steps: CountOrZero = 100
    cooldown_fraction: Fraction = 0.2
    min_steps: CountOrZero = 200
    fill: Fraction = 1.0
    images_per_token: Fraction = 0.0
    vocab_size: VocabSize = 0
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {Form.ISOFLOP: self.budgets, Form.FIXED_TOKENS: self.tokens}[self.form]
        name = {Form.ISOFLOP: "budgets", Form.FIXED_TOKENS: "tokens"}[self.form]
        if not given or not self.widths or not self.seeds:
            raise UserError(f"A study of the form {self.form.value} needs {name}, widths and seeds.")
        if not 0 < self.cooldown_fraction < 1:
            raise UserError(f"cooldown_fraction must lie between 0 and 1, not {self.cooldown_fraction}.")
        if not 0 < self.fill <= 1:
            raise UserError(f"fill is a fraction above 0 and up to 1, not {self.fill}.")
        if self.repeated is not None and not any(_is_close(self.repeated, one) for one in given):
            raise UserError(f"repeated is {self.repeated:.3g}, and must be one of {name}.")
        wrong = [width for width in self.widths if width % self.ladder.head_dim]
        if wrong:
            raise UserError(f"Width {wrong[0]} is not a multiple of ladder.head_dim, {self.ladder.head_dim}.")
        for override in self.overrides:
            if not all(override.partition("=")):
                raise UserError(f"overrides are as in 'train.log_every=10', not {override!r}.")
        if self.min_steps <= self.warmup_steps:
            raise UserError(f"min_steps ({self.min_steps}) must be more than warmup_steps ({self.warmup_steps}).")

    @property
    def grid(self) -> tuple[float, ...]:
        """Budgets or numbers of tokens, smallest first."""
        return tuple(sorted(self.budgets if self.form is Form.ISOFLOP else self.tokens))

    def is_held_out(self, point: float) -> bool:
        """Return True for the largest point of the grid, where it is held out."""
        return self.held_out and _is_close(point, self.grid[-1])

    def seeds_at(self, point: float) -> tuple[int, ...]:
        """Return the seeds that run at this point of the grid."""
        repeats = self.repeated is not None and _is_close(point, self.repeated)
        return self.seeds if repeats else self.seeds[:1]


def _is_close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * abs(b)
