"""The law L(N, D) = E + A / N^alpha + B / D^beta and what follows from it in closed form (arXiv 2203.15556, eq. 4)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class Frontier:
    """The lowest loss that a budget reaches: L(C) = E + K / C^gamma."""

    E: float
    K: float
    gamma: float

    def loss(self, budget: ArrayLike) -> np.ndarray:
        """Return the loss at each budget."""
        return self.E + self.K / np.asarray(budget, float) ** self.gamma


@dataclasses.dataclass(frozen=True)
class Law:
    """Five numbers; `flops` is k in C = k N D.

    Attributes:
      E: loss of an infinite model on infinite data.
      A: of the term that falls with parameters.
      alpha: its exponent.
      B: of the term that falls with tokens.
      beta: its exponent.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    flops: float = 6.0

    def loss(self, params: ArrayLike, tokens: ArrayLike) -> np.ndarray:
        """Return the loss of `params` parameters trained on `tokens` tokens."""
        params, tokens = np.asarray(params, float), np.asarray(tokens, float)
        return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

    @property
    def a(self) -> float:
        """Exponent of the optimal size: N* is proportional to C^a."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Exponent of the optimal data: D* is proportional to C^b, b = 1 - a."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def gamma(self) -> float:
        """Exponent of the frontier: L(C) - E is proportional to C^-gamma."""
        return self.alpha * self.beta / (self.alpha + self.beta)

    @property
    def has_optimum(self) -> bool:
        """True where both terms are there, so that a budget has one best split."""
        return min(self.A, self.B, self.alpha, self.beta) > 0

    def optimum(self, budget: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return (N*, D*), the split of each budget with the lowest loss."""
        product = np.asarray(budget, float) / self.flops
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return scale * product**self.a, product**self.b / scale

    @property
    def frontier(self) -> Frontier:
        """The loss at the optimum of each budget."""
        params, tokens = self.optimum(1.0)
        reducible = float(self.A * params**-self.alpha + self.B * tokens**-self.beta)
        return Frontier(self.E, reducible, self.gamma)


def law_from_power_laws(*, size: tuple[float, float], frontier: Frontier, flops: float) -> Law | None:
    """Return the law whose optima are N* = `size[0]` C^`size[1]` and whose frontier is `frontier`.

    At the optimum alpha A / N^alpha = beta B / D^beta, which leaves one law. None where the exponents allow none.
    """
    coefficient, a = size
    if not (0 < a < 1 and frontier.gamma > 0 and frontier.K > 0):
        return None
    alpha, beta = frontier.gamma / a, frontier.gamma / (1 - a)
    params, tokens = coefficient, 1 / (flops * coefficient)  # at C = 1
    of_size = frontier.K * beta / (alpha + beta)
    log_a = math.log(of_size) + alpha * math.log(params)
    log_b = math.log(frontier.K - of_size) + beta * math.log(tokens)
    if max(log_a, log_b) > 700:
        return None
    return Law(frontier.E, math.exp(log_a), alpha, math.exp(log_b), beta, flops)
