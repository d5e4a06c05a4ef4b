"""Pretraining: the next token by cross-entropy, the next visual embedding by regression, in one pass.

Captioning first and both losses after, with the vision side frozen, is this stage twice: `regression_coefficient=0`,
then `trainable=LANGUAGE_SIDE` (DESIGN, Collapse).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from emu_jax.data.batch import BatchConfig, batch_spec
from emu_jax.losses import (
    Mean,
    collapse_monitors,
    embedding_variance,
    masked_mean,
    mean_by_source,
    regression_losses,
    text_losses,
)
from emu_jax.models.config import EmuConfig
from emu_jax.models.emu import Emu
from emu_jax.training.stage import Batch, LossOutput

EVERYTHING = (r".*",)
VISION_SIDE = (r"^vision_encoder/", r"^visual_norm/", r"^causal_former/")
LANGUAGE_SIDE = (r"^decoder/", r"^lm_head/", r"^regression_head/")


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Weights and remedies.

    Attributes:
      text_coefficient: factor of the mean cross-entropy. Not published for Emu; third-party trainers take 1.
      regression_coefficient: factor of the mean squared error. Not published; third-party trainers take 1.
      trainable: regexes on parameter paths.
      normalize_targets: divide the squared error by the variance of the visual embeddings over the (micro)batch, so
        that shrinking the embeddings gains nothing.
      detach_regression: no gradient of the regression loss into the vision side, neither through the targets (never)
        nor through the embeddings that the decoder reads. Costs a second pass of the decoder.
      monitors: measure the embeddings' variance, cosine and rank in every step.
    """

    text_coefficient: float = 1.0
    regression_coefficient: float = 1.0
    trainable: tuple[str, ...] = EVERYTHING
    normalize_targets: bool = False
    detach_regression: bool = False
    monitors: bool = True


@dataclasses.dataclass(frozen=True)
class PretrainStage:
    """The unified objective over packed rows.

    Attributes:
      model: sizes of the Emu.
      batch: sizes of the global batch.
      image_token_id: the id of `<image>`.
      sources: names of the data sets, in the order of `source_ids`.
      config: weights and remedies.
    """

    model: EmuConfig
    batch: BatchConfig
    image_token_id: int
    sources: tuple[str, ...] = ()
    config: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    name: str = "pretrain"

    @property
    def trainable(self) -> tuple[str, ...]:
        """Regexes of what trains."""
        return self.config.trainable

    @property
    def coefficients(self) -> dict[str, float]:
        """Of the two losses."""
        return {"text": self.config.text_coefficient, "regression": self.config.regression_coefficient}

    @property
    def emu(self) -> Emu:
        """The model."""
        return Emu(self.model, image_token_id=self.image_token_id)

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch."""
        return batch_spec(self.batch)

    def init(self, rng: jax.Array) -> Any:
        """Boxed parameters; one row is enough to know their shapes."""
        spec = batch_spec(dataclasses.replace(self.batch, batch_size=1, max_images=1))
        row = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in spec.items()}
        return self.emu.init(rng, row["tokens"], row["images"])["params"]

    def loss_weights(self, batch: Batch) -> dict[str, jax.Array]:
        """How many predictions each loss counts."""
        return {"text": batch["text_loss_mask"].sum(), "regression": batch["regression_mask"].sum()}

    def losses(self, params: Any, batch: Batch, rng: jax.Array, *, deterministic: bool) -> LossOutput:
        """Both losses, each apart for every data set, and the monitors of collapse."""
        output = self._forward(params, batch, rng, deterministic=deterministic)
        text = text_losses(output.logits, tokens=batch["tokens"], vocab_size=self.model.decoder.vocab_size)
        predictions, inputs = output.visual_predictions, output.input_embeddings
        if self.config.detach_regression:
            detached = self._forward(params, batch, rng, deterministic=deterministic, detach_images=True)
            predictions = detached.visual_predictions
        regression = regression_losses(predictions, input_embeddings=inputs)
        if self.config.normalize_targets:
            regression = regression / self._target_variance(output.visual_embeddings, batch)

        metrics = self._metrics(text, regression, batch)
        if self.config.monitors:
            metrics |= collapse_monitors(output.visual_embeddings, num_images=batch["num_images"])
        sums = {
            "text": masked_mean(text, batch["text_loss_mask"]).sum,
            "regression": masked_mean(regression, batch["regression_mask"]).sum,
        }
        return LossOutput(sums, metrics)
