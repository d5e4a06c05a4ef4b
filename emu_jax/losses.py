"""Emu's two losses and the collapse monitors, as values per position or as `clu.metrics.Average(total, count)`.

An `Average` is divided once, after totals and counts are added over microbatches and devices. So the result does not
depend on how text and images are distributed over rows. Counts are float32 sums of weights.
"""

import jax
import jax.numpy as jnp
from clu.metrics import Average

from emu_jax.typing import Array, Float, Int, typechecked

MONITORED_IMAGES = 64  # maximum number of images for the effective rank, whose cost is cubic in it


def masked_mean(values: Array, mask: Array) -> Average:
    """Return the mean of `values` weighted by `mask` (float, same shape). Values with a zero mask may be non-finite."""
    return Average(jnp.sum(jnp.where(mask > 0, values * mask, 0.0)), jnp.sum(mask, dtype=jnp.float32))


def mean_by_source(values: Array, mask: Array, *, source_ids: Array, num_sources: int) -> tuple[Average, ...]:
    """Return the `masked_mean` of each data set; element s counts the positions with source id s."""
    masked = jnp.where(mask > 0, values * mask, 0.0).reshape(-1)
    segments = source_ids.reshape(-1)
    sums = jax.ops.segment_sum(masked, segments, num_segments=num_sources)
    weights = jax.ops.segment_sum(mask.reshape(-1).astype(jnp.float32), segments, num_segments=num_sources)
    return tuple(Average(sums[s], weights[s]) for s in range(num_sources))


@typechecked
def text_losses(logits: Float[Array, "B L V"], *, tokens: Int[Array, "B L"], vocab_size: int) -> Float[Array, "B L"]:
    """Return the cross-entropy (nats) of the next token at every position.

    Args:
      logits: scores of the next token; V may include padding beyond `vocab_size`.
      tokens: the sequence; the label of position t is `tokens[t + 1]`.
      vocab_size: size of the vocabulary without padding; padding ids have no probability.

    Returns:
      float32 [B L]. The last position has no next token: its value is 0, and its mask must be 0.
    """
    vocabulary = jnp.arange(logits.shape[-1])
    # Slicing or gathering would materialize all logits in float32. Masking only reads them.
    logits = jnp.where(vocabulary < vocab_size, logits.astype(jnp.float32), -jnp.inf)
    labels = jnp.roll(tokens, -1, axis=1)[:, :, None]
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(vocabulary == labels, logits, 0.0), axis=-1)
    return losses.at[:, -1].set(0.0)


@typechecked
def regression_losses(
    predictions: Float[Array, "B L D"], *, input_embeddings: Float[Array, "B L D"]
) -> Float[Array, "B L"]:
    """Return the squared error, averaged over D, of the prediction at t to the detached input embedding at t + 1.

    Returns:
      float32 [B L]; 0 at the last position.
    """
    targets = jax.lax.stop_gradient(input_embeddings[:, 1:]).astype(jnp.float32)
    errors = jnp.square(predictions[:, :-1].astype(jnp.float32) - targets)
    return jnp.pad(errors.mean(axis=-1), ((0, 0), (0, 1)))


@typechecked
def embedding_variance(embeddings: Float[Array, "n Q D"], *, mask: Float[Array, "n"]) -> Float[Array, ""]:
    """Return the variance over the images of a batch, averaged over queries and dimensions.

    It is 0 for a causal former that ignores its image, even if its Q outputs differ from each other.
    """
    x = embeddings.astype(jnp.float32)
    count = jnp.maximum(mask.sum(), 1.0)
    weights = mask[:, None, None] / count
    centered = x - jnp.sum(x * weights, axis=0)
    return jnp.mean(jnp.sum(jnp.square(centered) * weights, axis=0))


@typechecked
def mean_pairwise_cosine(embeddings: Float[Array, "n Q D"], *, mask: Float[Array, "n"]) -> Float[Array, ""]:
    """Return the mean cosine similarity of two images of the batch, as vectors of Q x D values; 1 means collapse.

    Computed from |sum of unit vectors|^2 = n + sum over pairs, without an [n n] matrix. 0 with fewer than two images.
    """
    x = embeddings.reshape(embeddings.shape[0], -1).astype(jnp.float32)
    units = mask[:, None] * x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    count = mask.sum()
    pairs = count * (count - 1.0)
    return jnp.where(pairs > 0, (jnp.sum(jnp.square(units.sum(axis=0))) - count) / jnp.maximum(pairs, 1.0), 0.0)


@typechecked
def effective_rank(embeddings: Float[Array, "n Q D"], *, mask: Float[Array, "n"]) -> Float[Array, ""]:
    """Return exp of the entropy of the normalized singular values of the centered [n, Q x D] matrix of images.

    Roy and Vetterli, "The effective rank" (EUSIPCO 2007). Between 1 (all images on a line) and n - 1. Only the first
    `MONITORED_IMAGES` images are used. Cost: an [n n] matmul and its eigenvalues.
    """
    x = embeddings[:MONITORED_IMAGES].reshape(min(embeddings.shape[0], MONITORED_IMAGES), -1).astype(jnp.float32)
    weights = mask[:MONITORED_IMAGES, None]
    mean = jnp.sum(x * weights, axis=0) / jnp.maximum(weights.sum(), 1.0)
    centered = (x - mean) * weights
    singular_values = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(centered @ centered.T), 0.0))
    p = singular_values / jnp.maximum(singular_values.sum(), 1e-12)
    return jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-30)), 0.0)))


@typechecked
def collapse_monitors(visual_embeddings: Float[Array, "B I Q D"], *, num_images: Int[Array, "B"]) -> dict[str, Average]:
    """Return variance, mean pairwise cosine and effective rank of the embeddings of the used image slots.

    Each has count 1, or count 0 if the batch has fewer than two images.
    """
    B, I, Q, D = visual_embeddings.shape
    embeddings = jax.lax.stop_gradient(visual_embeddings)
    present = (jnp.arange(I) < num_images[:, None]).astype(jnp.float32)
    flat, mask = embeddings.reshape(B * I, Q, D), present.reshape(-1)
    # Slot-major order, so that the images for the effective rank come from as many rows as possible. Sliced before the
    # transpose, so that a mesh gathers only these images.
    slots = -(-MONITORED_IMAGES // B)
    first = embeddings[:, :slots].swapaxes(0, 1).reshape(-1, Q, D)
    weight = (mask.sum() > 1).astype(jnp.float32)
    monitors = {
        "visual_embedding_variance": embedding_variance(flat, mask=mask),
        "visual_embedding_cosine": mean_pairwise_cosine(flat, mask=mask),
        "visual_embedding_rank": effective_rank(first, mask=present[:, :slots].T.reshape(-1)),
    }
    return {name: Average(value * weight, weight) for name, value in monitors.items()}
