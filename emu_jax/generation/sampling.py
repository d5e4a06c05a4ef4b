"""How the next token is chosen: what the user asks for, and the arithmetic on scores, as Hugging Face defines it.

Lengths count the `<s>` that Hugging Face's `generate` starts its own ids with when it is given embeddings, as the
release does: `min_length` 8 is seven new tokens, and a length penalty divides by one more than the new tokens.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from emu_jax.errors import UserError
from emu_jax.typing import Array, Float, Int

EARLY_STOPPING = (False, True, "never")


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """What a user may ask of text generation.

    Attributes:
      max_new_tokens: at most this many, and no more than the context has room for.
      num_beams: 1 for greedy search or sampling; more for beam search.
      length_penalty: a beam's log-likelihood is divided by length ** this; the release takes 0, and 1 for videos.
      early_stopping: False stops when no beam is likely to become better, True at `num_beams` finished ones, "never"
        only when none can.
      min_length: `</s>` cannot come earlier.
      repetition_penalty: scores of tokens already generated are divided (multiplied, below zero) by it.
      no_repeat_ngram_size: no n-gram comes twice; 0: no such rule.
      temperature: 0 takes the likeliest token; above, tokens are drawn.
      top_k, top_p: draws among the k likeliest (0: all), and among the likeliest that together have p.
      seed: of the draws.
    """

    max_new_tokens: int = 128
    num_beams: int = 1
    length_penalty: float = 0.0
    early_stopping: bool | str = False
    min_length: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("num_beams", 1), ("min_length", 0), ("no_repeat_ngram_size", 0),
                            ("top_k", 0), ("temperature", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if self.repetition_penalty <= 0:
            raise UserError(f"repetition_penalty must be above 0, not {self.repetition_penalty}.")
        if self.early_stopping not in EARLY_STOPPING:
            raise UserError(f'early_stopping must be False, True or "never", not {self.early_stopping!r}.')
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise UserError("top_k and top_p choose among drawn tokens; give a temperature above 0 with them.")
        if self.temperature > 0 and self.num_beams > 1:
            raise UserError("Beam search does not draw tokens; give a temperature or several beams, not both.")


@dataclasses.dataclass(frozen=True)
class Search:
    """What a program is compiled for."""

    room: int  # new tokens there is room for
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
    """What may change from call to call without compiling again. Scalars."""

    max_new_tokens: Int[Array, ""]
    min_length: Int[Array, ""]
    length_penalty: Float[Array, ""]
    repetition_penalty: Float[Array, ""]
    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    seed: Int[Array, ""]


def compile_options(
    options: TextOptions, *, room: int, max_new_tokens: int, bos_id: int, eos_id: int, pad_id: int
) -> tuple[Search, Controls]:
    """The part of the options that is compiled in, and the part that is handed over at each call."""
    search = Search(
        room=room,
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
        seed=jnp.uint32(options.seed % 2**32),
    )
    return search, controls


def process_scores(
    scores: jax.Array, tokens: jax.Array, length: jax.Array, controls: Controls, search: Search
) -> jax.Array:
    """Repetition penalty, no-repeat n-grams, minimum length, in Hugging Face's order.

    Args:
      scores: logits, or log-probabilities in beam search, `[R, V]`.
      tokens: `[R, T]`, the first `length` of them generated (`<s>` first); the others hold `<s>` too.
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
    """The next token of each row, `[R]`: the likeliest, or one drawn."""
    if not search.sample:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    scores = scores / controls.temperature
    if search.filtered:
        scores = filter_scores(scores, top_k=controls.top_k, top_p=controls.top_p)
    key = jax.random.fold_in(jax.random.key(controls.seed), step)
    return jax.random.categorical(key, scores).astype(jnp.int32)


def filter_scores(scores: jax.Array, *, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """-inf for all but the `top_k` best (0: all), and of these for all but the fewest that together reach `top_p`."""
    vocabulary = scores.shape[-1]
    ordered = -jnp.sort(-scores, axis=-1)
    k = jnp.where(top_k > 0, jnp.minimum(top_k, vocabulary), vocabulary)
    least = jax.lax.dynamic_slice_in_dim(ordered, k - 1, 1, axis=-1)
    ordered = jnp.where(ordered < least, -jnp.inf, ordered)
    before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
    kept = jnp.sum((before < top_p) & (ordered > -jnp.inf), axis=-1, keepdims=True)
    least = jnp.maximum(least, jnp.take_along_axis(ordered, jnp.maximum(kept - 1, 0), axis=-1))
    return jnp.where(scores < least, -jnp.inf, scores)


def _repeats(tokens: jax.Array, length: jax.Array, n: int, vocabulary: int) -> jax.Array:
    """Which next tokens `[R, V]` would make an n-gram that is already there.

    n = 2, tokens <s> a b c a  ->  b
    """
    windows = tokens.shape[1] - n + 1
    if windows < 1:
        return jnp.zeros((tokens.shape[0], vocabulary), bool)
    last = jax.lax.dynamic_slice_in_dim(tokens, length - (n - 1), n - 1, axis=1)
    matches = jnp.arange(windows)[None, :] + n - 1 < length
    for place in range(n - 1):
        matches &= tokens[:, place : place + windows] == last[:, place : place + 1]
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], vocabulary), bool).at[rows, tokens[:, n - 1 :]].max(matches)
