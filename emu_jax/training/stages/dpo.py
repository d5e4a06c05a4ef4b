"""Direct preference optimization (Rafailov et al. 2023) on pairs of a chosen and a rejected answer.

    loss = -log sigmoid(beta * ((log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected))))

The reference is the model without its LoRA adapters, so no second set of parameters is stored. In a batch, the
documents of a row alternate between chosen and rejected: the pair p is in the segments 2 p - 1 and 2 p.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from clu.metrics import Average

from emu_jax.bounds import Checked, NonNegative
from emu_jax.losses import text_losses
from emu_jax.training.partition import flatten, unflatten
from emu_jax.training.stage import Batch, LossOutput
from emu_jax.training.stages.pretrain import PretrainStage

PREFERENCE = "preference"


@dataclasses.dataclass(frozen=True)
class DpoConfig(Checked):
    """Settings of the loss.

    Attributes:
      beta: strength of the penalty for leaving the reference; 0.1 in the paper.
    """

    beta: NonNegative = 0.1


@flax.struct.dataclass
class AnswerScores:
    """Log-probabilities [B P] of the answers of P pairs per row; 0 where a row has fewer pairs."""

    chosen: jax.Array
    rejected: jax.Array


@dataclasses.dataclass(frozen=True)
class DpoStage(PretrainStage):
    """The loss of preferences on packed pairs; `config.trainable` matches LoRA adapters only."""

    dpo: DpoConfig = dataclasses.field(default_factory=DpoConfig)
    name: str = "dpo"

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of the one loss."""
        return {PREFERENCE: 1.0}

    @property
    def uses_batch_statistics(self) -> bool:
        """False: there is no regression loss."""
        return False

    def loss_denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the number of pairs."""
        return {PREFERENCE: _num_pairs(batch).sum().astype(jnp.float32)}

    def losses(
        self, params: Any, batch: Batch, rng: jax.Array, *, deterministic: bool, statistics: jax.Array | None = None
    ) -> LossOutput:
        """Return the loss and the rewards: beta times the change of log p from the reference."""
        del statistics
        policy = self._scores(params, batch, rng, deterministic=deterministic)
        reference = self._scores(jax.lax.stop_gradient(without_adapters(params)), batch, rng, deterministic=True)
        chosen = self.dpo.beta * (policy.chosen - reference.chosen)
        rejected = self.dpo.beta * (policy.rejected - reference.rejected)
        present = jnp.arange(chosen.shape[1]) < _num_pairs(batch)[:, None]
        losses = -jax.nn.log_sigmoid(chosen - rejected)

        def mean(values: jax.Array) -> Average:
            return Average(jnp.where(present, values, 0.0).sum(), present.sum().astype(jnp.float32))

        metrics = {
            "reward/chosen": mean(chosen),
            "reward/rejected": mean(rejected),
            "reward/margin": mean(chosen - rejected),
            "reward/accuracy": mean((chosen > rejected).astype(jnp.float32)),
        }
        return LossOutput({PREFERENCE: jnp.where(present, losses, 0.0).sum()}, metrics)

    def _scores(self, params: Any, batch: Batch, rng: jax.Array, *, deterministic: bool) -> AnswerScores:
        output = self._forward(params, batch, rng, deterministic=deterministic)
        losses = text_losses(output.logits, tokens=batch["tokens"], vocab_size=self.vocab_size)
        scores = jnp.where(batch["text_loss_mask"] > 0, -losses, 0.0)
        segments = batch["tokens"].shape[1] + 1  # one token each at most
        sums = jax.vmap(lambda x, ids: jax.ops.segment_sum(x, ids, num_segments=segments))(scores, batch["segment_ids"])
        pairs = (segments - 1) // 2
        return AnswerScores(chosen=sums[:, 1 : 2 * pairs : 2], rejected=sums[:, 2 : 2 * pairs + 1 : 2])


def without_adapters(params: Any) -> Any:
    """Return the parameters with LoRA's second matrices set to zero, so that the adapters add nothing."""
    return unflatten(
        {path: jnp.zeros_like(x) if path.endswith("/lora_b") else x for path, x in flatten(params).items()}
    )


def _num_pairs(batch: Batch) -> jax.Array:
    """Return the number of pairs [B] of each row."""
    return batch["segment_ids"].max(axis=1) // 2
