"""The seam between the loop and what it trains."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from emu_jax.losses import Mean

Batch = Mapping[str, jax.Array]


@runtime_checkable
class CountsFlops(Protocol):
    """A stage that knows what its steps cost; its runs tell their MFU."""

    def step_flops(self, *, tokens: float, images: float) -> float:
        """Useful operations, forward and backward, of a step with so many token places and images in use."""


@runtime_checkable
class Measures(Protocol):
    """A stage whose losses depend on something of the whole batch beyond their weights, such as a variance.

    With several microbatches the step calls `measure` on each before any gradient, and `losses` of such a stage takes
    what `combine` made of it as `measured`; with one it measures for itself (`measured` is None).
    """

    @property
    def measures(self) -> bool:
        """Whether the losses, as they are configured, want it."""

    def measure(self, params: Any, batch: "Batch", rng: jax.Array) -> Any:
        """A tree of arrays of one microbatch; not differentiated."""

    def combine(self, measured: Any) -> Any:
        """The whole batch's, from `measure` of every microbatch stacked along a new first axis."""


@runtime_checkable
class ReadsText(Protocol):
    """A stage whose model has a vocabulary; warm starts from a model with a smaller one let it grow."""

    @property
    def vocab_size(self) -> int:
        """Ids that exist, special tokens included."""


class LossOutput(NamedTuple):
    """What one (micro)batch gave.

    Attributes:
      sums: name of a loss term -> its sum over what it counts (differentiated).
      metrics: name -> Mean to be logged; never differentiated.
    """

    sums: dict[str, jax.Array]
    metrics: dict[str, Mean]


@runtime_checkable
class Stage(Protocol):
    """One kind of training.

    The total loss is sum_k loss_weights[k] * sums[k] / weights[k], each weight taken over the whole global batch
    before any gradient: that is what makes accumulation and sharding exact.
    """

    @property
    def name(self) -> str:
        """Of the stage, for logs and configs."""

    @property
    def trainable(self) -> tuple[str, ...]:
        """Regexes on the "/"-joined parameter paths; what none matches is frozen."""

    @property
    def loss_weights(self) -> dict[str, float]:
        """The factor of each loss term; a term with factor 0 is still measured."""

    def init(self, rng: jax.Array) -> Any:
        """All parameters, boxed with their logical axes. Runs under `jit`, so nothing is ever whole."""

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of one global batch; the first axis is the batch."""

    def loss_denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """What each loss term counts in `batch`; depends on the batch alone."""

    def losses(self, params: Any, batch: Batch, rng: jax.Array, *, deterministic: bool) -> LossOutput:
        """Runs the model on one (micro)batch."""
