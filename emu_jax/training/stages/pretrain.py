"""Pretraining: the next token by cross-entropy, the next visual embedding by regression, in one pass.

Captioning first and both losses after, with the vision side frozen, is this stage twice: `regression_coefficient=0`
(named `caption_warmup`), then `trainable=LANGUAGE_SIDE`. Instruction tuning is it as well, on chats whose answers alone
the batch's mask counts (named `instruct`).
"""

import dataclasses
from typing import Any, NamedTuple

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
from emu_jax.models.outputs import EmuOutput
from emu_jax.training.flops import forward_flops
from emu_jax.training.partition import matcher
from emu_jax.training.stage import Batch, LossOutput

EVERYTHING = (r".*",)
VISION_PARTS = ("vision_encoder", "visual_norm", "causal_former")
LANGUAGE_SIDE = (r"^decoder/", r"^lm_head/", r"^regression_head/")


class Spread(NamedTuple):
    """How the visual embeddings of some images vary: how many `images`, their `mean` [Q D], their `variance`."""

    images: jax.Array
    mean: jax.Array
    variance: jax.Array


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Weights and remedies.

    Attributes:
      text_coefficient: factor of the mean cross-entropy. Not published for Emu; third-party trainers take 1.
      regression_coefficient: factor of the mean squared error. Not published; third-party trainers take 1.
      trainable: regexes on parameter paths.
      normalize_targets: divide the squared error by the variance of the visual embeddings over the batch, so that
        shrinking the embeddings gains nothing. With accumulation the vision side runs forward once more, to know it.
      detach_regression: no gradient of the regression loss into the vision side, neither through the targets (never)
        nor through the embeddings that the decoder reads. Costs a second backward pass of the decoder.
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
    def loss_weights(self) -> dict[str, float]:
        """Of the two losses."""
        return {"text": self.config.text_coefficient, "regression": self.config.regression_coefficient}

    @property
    def emu(self) -> Emu:
        """The model."""
        return Emu(self.model, image_token_id=self.image_token_id)

    @property
    def vocab_size(self) -> int:
        """Ids that exist, special tokens included."""
        return self.model.decoder.vocab_size

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch."""
        return batch_spec(self.batch)

    def init(self, rng: jax.Array) -> Any:
        """Boxed parameters; one row is enough to know their shapes."""
        spec = batch_spec(dataclasses.replace(self.batch, batch_size=1, max_images=1))
        row = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in spec.items()}
        return self.emu.init(rng, row["tokens"], row["images"])["params"]

    def loss_denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """How many predictions each loss counts."""
        return {"text": batch["text_loss_mask"].sum(), "regression": batch["regression_mask"].sum()}

    @property
    def measures(self) -> bool:
        """Whether a microbatch must know the whole batch's embeddings."""
        return self.config.normalize_targets

    def measure(self, params: Any, batch: Batch, rng: jax.Array) -> Spread:
        """Of the embeddings of one microbatch, as `losses` will make them with the same `rng`."""
        B, I = batch["images"].shape[:2]
        flat = batch["images"].reshape(B * I, *batch["images"].shape[2:])
        embeddings = self.emu.apply(
            {"params": params}, flat, deterministic=False, rngs={"dropout": rng}, method="embed_images"
        )
        flat, present = _flatten_images(embeddings.reshape(B, I, *embeddings.shape[1:]), batch)
        count = present.sum()
        mean = jnp.sum(flat * present[:, None, None], axis=0) / jnp.maximum(count, 1.0)
        return Spread(count, mean, embedding_variance(flat, mask=present))

    def combine(self, measured: Spread) -> jax.Array:
        """The variance over the images of all microbatches: within them, and between their means."""
        shares = measured.images / jnp.maximum(measured.images.sum(), 1.0)
        centre = jnp.einsum("a,aqd->qd", shares, measured.mean)
        between = jnp.square(measured.mean - centre).mean(axis=(1, 2))
        return jnp.sum(shares * (measured.variance + between))

    def losses(
        self, params: Any, batch: Batch, rng: jax.Array, *, deterministic: bool, measured: jax.Array | None = None
    ) -> LossOutput:
        """Both losses, each apart for every data set, and the monitors of collapse.

        `measured` is the variance of the embeddings over the whole batch where this is but a part of it.
        """
        output = self._forward(params, batch, rng, deterministic=deterministic)
        text = text_losses(output.logits, tokens=batch["tokens"], vocab_size=self.vocab_size)
        predictions, inputs = output.visual_predictions, output.input_embeddings
        if self.config.detach_regression:
            # The same forward pass, which XLA computes once; only the gradient ends at the vision side.
            detached = {part: jax.lax.stop_gradient(x) if part in VISION_PARTS else x for part, x in params.items()}
            predictions = self._forward(detached, batch, rng, deterministic=deterministic).visual_predictions
        regression = regression_losses(predictions, input_embeddings=inputs)
        if self.config.normalize_targets:
            assert output.visual_embeddings is not None, "a batch has slots for images"
            if measured is None:
                flat, present = _flatten_images(output.visual_embeddings, batch)
                measured = embedding_variance(flat, mask=present)
            regression = regression / jnp.maximum(measured, 1e-6)

        metrics = self._metrics(text, regression, batch)
        if self.config.monitors:
            metrics |= collapse_monitors(output.visual_embeddings, num_images=batch["num_images"])
        sums = {
            "text": masked_mean(text, batch["text_loss_mask"]).sum,
            "regression": masked_mean(regression, batch["regression_mask"]).sum,
        }
        return LossOutput(sums, metrics)

    def step_flops(self, *, tokens: float, images: float) -> float:
        """Forward, and backward as far as gradients are wanted; a document is taken to be as long as a row."""
        forward = forward_flops(self.model, context=self.batch.length / 2)
        trains = matcher(self.trainable)
        vision = trains("vision_encoder/blocks/mlp/up/kernel")
        former = trains("causal_former/blocks/mlp/up/kernel")
        decoder = trains("decoder/blocks/mlp/up/kernel")
        heads = trains("lm_head/projection/kernel")
        factor = lambda own, below: 1 + own + (own or below)  # adapters in a frozen part count as nothing of their own
        return tokens * (forward.heads * factor(heads, True) + forward.decoder * factor(decoder, True)) + images * (
            forward.causal_former * factor(former, vision) + forward.vision * factor(vision, False)
        )

    def _forward(self, params: Any, batch: Batch, rng: jax.Array, *, deterministic: bool) -> EmuOutput:
        return self.emu.apply(
            {"params": params},
            batch["tokens"],
            batch["images"],
            positions=batch["positions"],
            segment_ids=batch["segment_ids"],
            deterministic=deterministic,
            rngs={"dropout": rng},
        )

    def _metrics(self, text: jax.Array, regression: jax.Array, batch: Batch) -> dict[str, Mean]:
        places, slots = batch["segment_ids"], batch["images"].shape[:2]
        metrics = {
            "fill/tokens": masked_mean((places > 0).astype(jnp.float32), jnp.ones(places.shape)),
            "fill/images": Mean(batch["num_images"].sum().astype(jnp.float32), jnp.float32(slots[0] * slots[1])),
        }
        if len(self.sources) > 1:
            for loss, values, mask in (
                ("text", text, batch["text_loss_mask"]),
                ("regression", regression, batch["regression_mask"]),
            ):
                means = mean_by_source(
                    jax.lax.stop_gradient(values), mask, source_ids=batch["source_ids"], num_sources=len(self.sources)
                )
                metrics |= {f"loss/{loss}/{name}": mean for name, mean in zip(self.sources, means, strict=True)}
        return metrics


def _flatten_images(visual_embeddings: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """[B I Q D] as [B*I Q D], detached, and a float mask [B*I] of the images that are there."""
    present = jnp.arange(visual_embeddings.shape[1]) < batch["num_images"][:, None]
    flat = jax.lax.stop_gradient(visual_embeddings).reshape(-1, *visual_embeddings.shape[2:])
    return flat, present.astype(jnp.float32).reshape(-1)
