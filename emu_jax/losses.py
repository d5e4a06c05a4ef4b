"""Emu's two losses and the monitors of collapse. Arrays in, values per place or `Mean(sum, weight)` out.

Nothing here divides by a local count: a `Mean` is divided once, after its sums and weights were added up over
microbatches and devices, so text and images may be spread over rows in any way.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emu_jax.typing import Array, Float, Int, typechecked

MONITORED_IMAGES = 64  # the effective rank looks at this many images at most: its cost is cubic in them


class Mean(NamedTuple):
    """A weighted mean that has not been divided yet: scalars `sum` and `weight`, both float32."""

    sum: Array
    weight: Array

    @property
    def value(self) -> Array:
        """sum / weight, and 0 where nothing was counted."""
        return jnp.where(self.weight > 0, self.sum / jnp.where(self.weight > 0, self.weight, 1.0), 0.0)


def masked_mean(values: Array, mask: Array) -> Mean:
    """The mean of `values` where `mask` (same shape, float) counts them; a value under a zero mask may be anything."""
    return Mean(jnp.sum(jnp.where(mask > 0, values * mask, 0.0)), jnp.sum(mask, dtype=jnp.float32))


def mean_by_source(values: Array, mask: Array, *, source_ids: Array, num_sources: int) -> tuple[Mean, ...]:
    """`masked_mean` apart for each data set: element s counts the places whose source id is s."""
    kept = jnp.where(mask > 0, values * mask, 0.0).reshape(-1)
    segments = source_ids.reshape(-1)
    sums = jax.ops.segment_sum(kept, segments, num_segments=num_sources)
    weights = jax.ops.segment_sum(mask.reshape(-1).astype(jnp.float32), segments, num_segments=num_sources)
    return tuple(Mean(sums[s], weights[s]) for s in range(num_sources))


@typechecked
def text_losses(logits: Float[Array, "B L V"], *, tokens: Int[Array, "B L"], vocab_size: int) -> Float[Array, "B L"]:
    """Cross-entropy (nats) of the next token, at every place.

    Args:
        logits: scores of the token that follows each place; V may be padded past `vocab_size`.
        tokens: the sequence itself; the label of place t is `tokens[t + 1]`.
        vocab_size: the true vocabulary; ids from there on are padding of the table and get no probability.

    Returns:
        float32 [B L]. The last place has no next token: its value is 0, and so must be its mask.
    """
    vocabulary = jnp.arange(logits.shape[-1])
    # Slicing the logits, or gathering from them, would write them out whole in float32; this only reads them.
    logits = jnp.where(vocabulary < vocab_size, logits.astype(jnp.float32), -jnp.inf)
    labels = jnp.roll(tokens, -1, axis=1)[:, :, None]
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(vocabulary == labels, logits, 0.0), axis=-1)
    return losses.at[:, -1].set(0.0)


@typechecked
def regression_losses(
    predictions: Float[Array, "B L D"], *, input_embeddings: Float[Array, "B L D"]
) -> Float[Array, "B L"]:
    """Squared error, averaged over D, between the prediction at t and the (detached) input embedding at t + 1.

    Returns:
        float32 [B L]; the last place is 0.
    """
    targets = jax.lax.stop_gradient(input_embeddings[:, 1:]).astype(jnp.float32)
    errors = jnp.square(predictions[:, :-1].astype(jnp.float32) - targets)
    return jnp.pad(errors.mean(axis=-1), ((0, 0), (0, 1)))


@typechecked
def embedding_variance(embeddings: Float[Array, "n Q D"], *, mask: Float[Array, "n"]) -> Float[Array, ""]:
    """Variance over the images of a batch, for each query and dimension apart, then averaged over both.

    A causal former that ignores its image scores 0 here, however different its Q outputs are from one another.
    """
    x = embeddings.astype(jnp.float32)
    count = jnp.maximum(mask.sum(), 1.0)
    weights = mask[:, None, None] / count
    centred = x - jnp.sum(x * weights, axis=0)
    return jnp.mean(jnp.sum(jnp.square(centred) * weights, axis=0))


@typechecked
def mean_pairwise_cosine(embeddings: Float[Array, "n Q D"], *, mask: Float[Array, "n"]) -> Float[Array, ""]:
    """Mean cosine between two different images of the batch (their Q x D outputs as one vector); 1 means collapse.

    Uses |sum of unit vectors|^2 = n + sum over pairs, so no [n n] matrix is made. 0 with fewer than two images.
    """
    x = embeddings.reshape(embeddings.shape[0], -1).astype(jnp.float32)
    units = mask[:, None] * x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    count = mask.sum()
    pairs = count * (count - 1.0)
    return jnp.where(pairs > 0, (jnp.sum(jnp.square(units.sum(axis=0))) - count) / jnp.maximum(pairs, 1.0), 0.0)


@typechecked
def effective_rank(embeddings: Float[Array, "n Q D"], *, mask: Float[Array, "n"]) -> Float[Array, ""]:
    """exp of the entropy of the normalised singular values of the centred [n, Q x D] matrix of images.

    Roy and Vetterli, "The effective rank" (EUSIPCO 2007). Between 1 (all images on one line) and n - 1; taken on the
    first `MONITORED_IMAGES` images given. Cost: one [n n] product and its eigenvalues.
    """
    x = embeddings[:MONITORED_IMAGES].reshape(min(embeddings.shape[0], MONITORED_IMAGES), -1).astype(jnp.float32)
    weights = mask[:MONITORED_IMAGES, None]
    centre = jnp.sum(x * weights, axis=0) / jnp.maximum(weights.sum(), 1.0)
    centred = (x - centre) * weights
    singular_values = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(centred @ centred.T), 0.0))
    shares = singular_values / jnp.maximum(singular_values.sum(), 1e-12)
    return jnp.exp(-jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.maximum(shares, 1e-30)), 0.0)))


@typechecked
def collapse_monitors(visual_embeddings: Float[Array, "B I Q D"], *, num_images: Int[Array, "B"]) -> dict[str, Mean]:
    """Variance, pairwise cosine and effective rank of the embeddings of the images that are there.

    Each counts with weight 1, or 0 where the batch holds fewer than two images and there is nothing to compare.
    """
    B, I, Q, D = visual_embeddings.shape
    embeddings = jax.lax.stop_gradient(visual_embeddings)
    present = (jnp.arange(I) < num_images[:, None]).astype(jnp.float32)
    flat, mask = embeddings.reshape(B * I, Q, D), present.reshape(-1)
    # Slot-major, so that the few images the effective rank looks at come from as many rows as there are; cut before
    # they are put in order, so that no more than they are gathered on a mesh.
    slots = -(-MONITORED_IMAGES // B)
    first = embeddings[:, :slots].swapaxes(0, 1).reshape(-1, Q, D)
    weight = (mask.sum() > 1).astype(jnp.float32)
    monitors = {
        "visual_embedding_variance": embedding_variance(flat, mask=mask),
        "visual_embedding_cosine": mean_pairwise_cosine(flat, mask=mask),
        "visual_embedding_rank": effective_rank(first, mask=present[:, :slots].T.reshape(-1)),
    }
    return {name: Mean(value * weight, weight) for name, value in monitors.items()}
