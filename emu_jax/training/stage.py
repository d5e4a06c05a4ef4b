"""The interface between the training loop and a training stage."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
from clu.metrics import Average

Batch = Mapping[str, jax.Array]


@runtime_checkable
class HasStepFlops(Protocol):
    """A stage that counts the operations of its steps, so that its runs report their MFU."""

    def step_flops(self, *, tokens: float, images: float) -> float:
        """Count the useful operations, forward and backward, of a step with this many tokens and images."""


@runtime_checkable
class UsesBatchStatistics(Protocol):
    """A stage whose losses depend on a statistic of the full batch, such as a variance.

    With several microbatches, the step calls `batch_statistics` on each of them before it computes gradients, and
    passes the result of `combine_statistics` to `losses` as `statistics`. With one microbatch, `losses` computes the
    statistic itself (`statistics` is None).
    """

    @property
    def uses_batch_statistics(self) -> bool:
        """True if the losses need the statistic with the current configuration."""

    def batch_statistics(self, params: Any, batch: "Batch", rng: jax.Array) -> Any:
        """Return a tree of arrays for one microbatch; it is not differentiated."""

    def combine_statistics(self, stacked: Any) -> Any:
        """Return the statistic of the full batch from those of all microbatches, stacked along a new first axis."""


@runtime_checkable
class HasVocabulary(Protocol):
    """A stage whose model has a vocabulary; a warm start from a smaller vocabulary adds the new tokens."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids, including special tokens."""

    @property
    def token_sources(self) -> Mapping[int, tuple[int, ...]]:
        """New token -> the tokens whose mean it starts from; others start as the mean of all."""


@flax.struct.dataclass
class LossOutput:
    """Losses and metrics of one (micro)batch.

    Attributes:
      sums: name of a loss term -> its sum over all predictions it counts (differentiated).
      metrics: name -> mean to log (not differentiated).
    """

    sums: dict[str, jax.Array]
    metrics: dict[str, Average]


@runtime_checkable
class Stage(Protocol):
    """A model with its losses.

    The total loss is sum_k loss_weights[k] * sums[k] / loss_denominators[k]. Each denominator is computed over the full
    global batch before any gradient, which makes gradient accumulation and sharding exact.
    """

    @property
    def name(self) -> str:
        """Name of the stage in logs and configs."""

    @property
    def trainable(self) -> tuple[str, ...]:
        """Regexes on the "/"-joined parameter paths; a parameter that none matches is frozen."""

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss term; a term with weight 0 is still logged."""

    def init(self, rng: jax.Array) -> Any:
        """Return all parameters, boxed with their logical axes. Called under `jit`: devices make only their shards."""

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of one global batch; the first axis is the batch."""

    def loss_denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the number of predictions that each loss term counts in `batch`; it depends on the batch only."""

    def losses(self, params: Any, batch: Batch, rng: jax.Array, *, deterministic: bool) -> LossOutput:
        """Run the model on one (micro)batch."""
