"""The choice of the next token: penalties, filters and sampling on scores, as Hugging Face defines them."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from emu_jax.generation.options import TextOptions
from emu_jax.typing import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Search:
    """The options that a program is compiled for."""

    capacity: int  # maximum number of new tokens
    num_beams: int
    early_stopping: bool | str
    sample: bool
    filtered: bool  # top-k or top-p
    penalized: bool
    no_repeat_ngram_size: int
    bos_id: int
    eos_id: int
    pad_id: int


@flax.struct.dataclass
class Controls:
    """The options that may change from call to call without a new compilation. Scalars."""

    max_new_tokens: Int[Array, ""]
    min_length: Int[Array, ""]
    length_penalty: Float[Array, ""]
    repetition_penalty: Float[Array, ""]
    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    seed: Int[Array, ""]


def compile_options(
    options: TextOptions, *, capacity: int, max_new_tokens: int, bos_id: int, eos_id: int, pad_id: int
) -> tuple[Search, Controls]:
    """Return the options that a program is compiled for, and those that are its inputs."""
    search = Search(
        capacity=capacity,
        num_beams=options.num_beams,
        early_stopping=options.early_stopping,
        sample=options.temperature > 0,
        filtered=options.top_k > 0 or options.top_p < 1,
        penalized=options.repetition_penalty != 1,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
    )
    controls = Controls(
        max_new_tokens=jnp.int32(max_new_tokens),
        min_length=jnp.int32(options.min_length),
        length_penalty=jnp.float32(options.length_penalty),
        repetition_penalty=jnp.float32(options.repetition_penalty),
        temperature=jnp.float32(options.temperature),
        top_k=jnp.int32(options.top_k),
        top_p=jnp.float32(options.top_p),
        seed=jnp.uint32(options.seed),
    )
    return search, controls


def process_scores(
    scores: jax.Array, tokens: jax.Array, length: jax.Array, controls: Controls, search: Search
) -> jax.Array:
    """Apply repetition penalty, no-repeat n-grams and minimum length, in the order of Hugging Face.

    Args:
      scores: logits, or log-probabilities in beam search, `[R, V]`.
      tokens: `[R, T]`; the first `length` are `<s>` and the generated tokens, the others are `<s>`.
    """
    if search.penalized:
        rows = jnp.arange(tokens.shape[0])[:, None]
        seen = jnp.zeros(scores.shape, bool).at[rows, tokens].set(True)
        penalty = controls.repetition_penalty
        scores = jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
    if search.no_repeat_ngram_size:
        scores = jnp.where(_repeats(tokens, length, search.no_repeat_ngram_size, scores.shape[1]), -jnp.inf, scores)
    too_short = length < controls.min_length
    return scores.at[:, search.eos_id].set(jnp.where(too_short, -jnp.inf, scores[:, search.eos_id]))


def choose(scores: jax.Array, step: jax.Array, controls: Controls, search: Search) -> jax.Array:
    """Return the next token of each row, `[R]`: the most likely one, or a sample."""
    if not search.sample:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    scores = scores / controls.temperature
    if search.filtered:
        scores = filter_scores(scores, top_k=controls.top_k, top_p=controls.top_p)
    key = jax.random.fold_in(jax.random.key(controls.seed), step)
    return jax.random.categorical(key, scores).astype(jnp.int32)


def filter_scores(scores: jax.Array, *, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Set all scores to -inf except the `top_k` largest (0: all), and of these the fewest whose probability is `top_p`.

    As in Hugging Face, `top_p` is the total probability after the `top_k` filter.
    """
    vocabulary = scores.shape[-1]
    ordered = -jnp.sort(-scores, axis=-1)
    k = jnp.where(top_k > 0, jnp.minimum(top_k, vocabulary), vocabulary)
    threshold = jax.lax.dynamic_slice_in_dim(ordered, k - 1, 1, axis=-1)
    ordered = jnp.where(ordered < threshold, -jnp.inf, ordered)
    before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
    count = jnp.sum((before < top_p) & (ordered > -jnp.inf), axis=-1, keepdims=True)
    threshold = jnp.maximum(threshold, jnp.take_along_axis(ordered, jnp.maximum(count - 1, 0), axis=-1))
    return jnp.where(scores < threshold, -jnp.inf, scores)


def _repeats(tokens: jax.Array, length: jax.Array, n: int, vocabulary: int) -> jax.Array:
    """Return a mask `[R, V]` of the next tokens that would repeat an n-gram.

    n = 2, tokens <s> a b c a  ->  b
    """
    windows = tokens.shape[1] - n + 1
    if windows < 1:
        return jnp.zeros((tokens.shape[0], vocabulary), bool)
    last = jax.lax.dynamic_slice_in_dim(tokens, length - (n - 1), n - 1, axis=1)
    matches = jnp.arange(windows)[None, :] + n - 1 < length
    for offset in range(n - 1):
        matches &= tokens[:, offset : offset + windows] == last[:, offset : offset + 1]
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], vocabulary), bool).at[rows, tokens[:, n - 1 :]].max(matches)
