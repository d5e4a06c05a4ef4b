"""Pretraining: next token by cross-entropy and next visual embedding by regression, in one forward pass.

The recipe from scratch uses this stage twice: captions first with `regression_weight=0` (stage `caption_warmup`), then
both losses with `trainable=LANGUAGE_SIDE`, so that the vision side is frozen. Instruction tuning also uses it, on chats
of which the batch's mask counts only the answers (stage `instruct`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from clu.metrics import Average

from emu_jax.bounds import Checked, CountOrZero, Dtype, NonNegative
from emu_jax.checkpoints.vocabulary import TABLES
from emu_jax.data.batch import BatchConfig, batch_spec
from emu_jax.losses import (
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
from emu_jax.training.partition import flatten, matcher, merge, split, unflatten
from emu_jax.training.stage import Batch, LossOutput

EVERYTHING = (r".*",)
VISION_PARTS = ("vision_encoder", "visual_norm", "causal_former")
LANGUAGE_SIDE = (r"^decoder/", r"^lm_head/", r"^regression_head/")
NEW_TOKEN_TABLES = (r"^decoder/token_embedding$", r"^lm_head/projection/kernel$")


@flax.struct.dataclass
class EmbeddingStatistics:
    """Statistics of the visual embeddings of some images.

    Attributes:
      count: number of images.
      mean: mean embedding [Q D].
      variance: variance over the images, averaged over Q and D.
    """

    count: jax.Array
    mean: jax.Array
    variance: jax.Array


@dataclasses.dataclass(frozen=True)
class PretrainConfig(Checked):
    """Weight of the regression loss, trainable parameters, and mitigations of collapse.

    Attributes:
      regression_weight: weight of the mean squared error; the mean cross-entropy has weight 1. The paper gives no
        value; third-party trainers use 1.
      trainable: regexes on parameter paths.
      new_tokens: also train the last `new_tokens` tokens of the vocabulary, in the embedding and in the head; the rows
        of the other tokens stay as they are.
      frozen_dtype: frozen parameters are stored in it, such as bfloat16. None: in `model.param_dtype`.
      normalize_targets: divide the squared error by the variance of the visual embeddings over the batch, so that
        smaller embeddings do not lower the loss. With accumulation, this costs one more forward pass of the vision
        side.
      detach_regression: send no gradient of the regression loss into the vision side through the embeddings that the
        decoder reads; through the targets there is never one. Costs a second backward pass of the decoder.
      monitors: log the variance, cosine and effective rank of the visual embeddings at every step.
    """

    regression_weight: NonNegative = 1.0
    trainable: tuple[str, ...] = EVERYTHING
    new_tokens: CountOrZero = 0
    frozen_dtype: Dtype | None = None
    normalize_targets: bool = False
    detach_regression: bool = False
    monitors: bool = True


@dataclasses.dataclass(frozen=True)
class PretrainStage:
    """Emu's objective on packed rows.

    Attributes:
      model: sizes of the Emu.
      batch: sizes of the global batch.
      image_token_id: id of `<image>`.
      sources: names of the data sets, in the order of `source_ids`.
      config: loss weight, trainable parameters and mitigations.
      token_sources: see `HasVocabulary`.
    """

    model: EmuConfig
    batch: BatchConfig
    image_token_id: int
    sources: tuple[str, ...] = ()
    config: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    name: str = "pretrain"
    token_sources: Mapping[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    @property
    def trainable(self) -> tuple[str, ...]:
        """Regexes of the trainable parameters."""
        return self.config.trainable + (NEW_TOKEN_TABLES if self.config.new_tokens else ())

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights of both losses."""
        return {"text": 1.0, "regression": self.config.regression_weight}

    @property
    def emu(self) -> Emu:
        """The model."""
        return Emu(self.model, image_token_id=self.image_token_id)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, including special tokens."""
        return self.model.decoder.vocab_size

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a global batch."""
        return batch_spec(self.batch)

    def init(self, rng: jax.Array) -> Any:
        """Return boxed parameters. One row is enough: their shapes do not depend on the batch."""
        spec = batch_spec(dataclasses.replace(self.batch, batch_size=1, max_images=1))
        row = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in spec.items()}
        params = self.emu.init(rng, row["tokens"], row["images"])["params"]
        if self.config.frozen_dtype is None:
            return params
        trainable, frozen = split(params, self.trainable)
        return merge(trainable, jax.tree.map(lambda x: x.astype(self.config.frozen_dtype), frozen))

    def loss_denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the number of predictions that each loss counts."""
        return {"text": batch["text_loss_mask"].sum(), "regression": batch["regression_mask"].sum()}

    @property
    def uses_batch_statistics(self) -> bool:
        """True if a microbatch needs the variance of the full batch's embeddings."""
        return self.config.normalize_targets

    def batch_statistics(self, params: Any, batch: Batch, rng: jax.Array) -> EmbeddingStatistics:
        """Return the statistics of one microbatch's embeddings, which are those of `losses` with the same `rng`."""
        B, I = batch["images"].shape[:2]
        flat = batch["images"].reshape(B * I, *batch["images"].shape[2:])
        embeddings = self.emu.apply(
            {"params": params}, flat, deterministic=False, rngs={"dropout": rng}, method="embed_images"
        )
        flat, mask = _flatten_images(embeddings.reshape(B, I, *embeddings.shape[1:]), batch)
        count = mask.sum()
        mean = jnp.sum(flat * mask[:, None, None], axis=0) / jnp.maximum(count, 1.0)
        return EmbeddingStatistics(count, mean, embedding_variance(flat, mask=mask))

    def combine_statistics(self, stacked: EmbeddingStatistics) -> jax.Array:
        """Return the variance over the images of all microbatches: within them plus between their means."""
        fractions = stacked.count / jnp.maximum(stacked.count.sum(), 1.0)
        center = jnp.einsum("a,aqd->qd", fractions, stacked.mean)
        between = jnp.square(stacked.mean - center).mean(axis=(1, 2))
        return jnp.sum(fractions * (stacked.variance + between))

    def losses(
        self, params: Any, batch: Batch, rng: jax.Array, *, deterministic: bool, statistics: jax.Array | None = None
    ) -> LossOutput:
        """Return both losses, also separately for every data set, and the collapse monitors.

        `statistics` is the variance of the visual embeddings over the full batch, if `batch` is only a part of it.
        """
        output = self._forward(params, batch, rng, deterministic=deterministic)
        text = text_losses(output.logits, tokens=batch["tokens"], vocab_size=self.vocab_size)
        predictions, inputs = output.visual_predictions, output.input_embeddings
        if self.config.detach_regression:
            # XLA merges both forward passes, which are equal; only the gradient stops at the vision side.
            detached = {part: jax.lax.stop_gradient(x) if part in VISION_PARTS else x for part, x in params.items()}
            predictions = self._forward(detached, batch, rng, deterministic=deterministic).visual_predictions
        regression = regression_losses(predictions, input_embeddings=inputs)
        if self.config.normalize_targets:
            variance = statistics
            if variance is None:
                assert output.visual_embeddings is not None, "a batch has image slots"
                flat, mask = _flatten_images(output.visual_embeddings, batch)
                variance = embedding_variance(flat, mask=mask)
            regression = regression / jnp.maximum(variance, 1e-6)

        metrics = self._metrics(text, regression, batch)
        if self.config.monitors:
            metrics |= collapse_monitors(output.visual_embeddings, num_images=batch["num_images"])
        sums = {
            "text": masked_mean(text, batch["text_loss_mask"]).total,
            "regression": masked_mean(regression, batch["regression_mask"]).total,
        }
        return LossOutput(sums, metrics)

    def step_flops(self, *, tokens: float, images: float) -> float:
        """Count forward operations, and backward ones where needed; a document is assumed to fill a row."""
        forward = forward_flops(self.model, context=self.batch.length / 2)
        trains = matcher(self.trainable)
        vision = trains("vision_encoder/blocks/mlp/up/kernel")
        former = trains("causal_former/blocks/mlp/up/kernel")
        decoder = trains("decoder/blocks/mlp/up/kernel")
        heads = trains("lm_head/projection/kernel")
        # One forward pass, one pass for the gradient of trained parameters, one for the gradient of inputs if the part
        # or a part before it is trained. Adapters in a frozen part are not counted.
        passes = lambda trained, before: 1 + trained + (trained or before)
        per_token = forward.heads * passes(heads, True) + forward.decoder * passes(decoder, True)
        per_image = forward.causal_former * passes(former, vision) + forward.vision * passes(vision, False)
        return tokens * per_token + images * per_image

    def _forward(self, params: Any, batch: Batch, rng: jax.Array, *, deterministic: bool) -> EmuOutput:
        return self.emu.apply(
            {"params": self._with_frozen_tokens(params)},
            batch["tokens"],
            batch["images"],
            positions=batch["positions"],
            segment_ids=batch["segment_ids"],
            deterministic=deterministic,
            rngs={"dropout": rng},
        )

    def _with_frozen_tokens(self, params: Any) -> Any:
        """Return `params` without gradients to the known tokens, if only the new ones are trained."""
        if not self.config.new_tokens:
            return params
        first, is_table = self.vocab_size - self.config.new_tokens, matcher(NEW_TOKEN_TABLES)

        def freeze(path: str, table: jax.Array) -> jax.Array:
            axis = TABLES[path]
            is_new = jnp.expand_dims(jnp.arange(table.shape[axis]) >= first, 1 - axis)
            return jnp.where(is_new, table, jax.lax.stop_gradient(table))

        return unflatten({path: freeze(path, x) if is_table(path) else x for path, x in flatten(params).items()})

    def _metrics(self, text: jax.Array, regression: jax.Array, batch: Batch) -> dict[str, Average]:
        segment_ids, (B, I) = batch["segment_ids"], batch["images"].shape[:2]
        metrics = {
            "fill/tokens": masked_mean((segment_ids > 0).astype(jnp.float32), jnp.ones(segment_ids.shape)),
            "fill/images": Average(batch["num_images"].sum().astype(jnp.float32), jnp.float32(B * I)),
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
    """Reshape [B I Q D] to [B*I Q D], detached; also return a float mask [B*I] of the slots that hold an image."""
    mask = jnp.arange(visual_embeddings.shape[1]) < batch["num_images"][:, None]
    flat = jax.lax.stop_gradient(visual_embeddings).reshape(-1, *visual_embeddings.shape[2:])
    return flat, mask.astype(jnp.float32).reshape(-1)
