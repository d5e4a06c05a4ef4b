"""Beam search with the rules of transformers 4.29 (its `BeamSearchScorer`), for all rows at once.

Each step sorts the 2K best continuations of a row's K beams. A `</s>` among the first K finishes a hypothesis, and the
first K others are the next beams. A row stores its K best hypotheses. It stops when the worst of them is better than
the score that the best beam can still attain.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from emu_jax.generation.decode import Step, embed_tokens, make_step, next_logits, repeat_rows, take_rows
from emu_jax.generation.sampling import Controls, Search, process_scores
from emu_jax.models.emu import Emu
from emu_jax.models.outputs import KVCache
from emu_jax.typing import Array, Bool, Float, Int

_UNUSED_BEAM = -1e9  # at the start all beams of a row are equal, so only the first one is used


@flax.struct.dataclass
class Hypotheses:
    """The K best finished sequences of each row, unsorted; a score of -inf marks an empty slot."""

    tokens: Int[Array, "B K T"]
    lengths: Int[Array, "B K"]
    scores: Float[Array, "B K"]

    def add(
        self, tokens: jax.Array, length: jax.Array, score: jax.Array, *, where: jax.Array, capacity: jax.Array
    ) -> "Hypotheses":
        """Replace the worst of the first `capacity` sequences of each row in `where` by `tokens` `[B, T]` if better."""
        worst = jnp.argmin(self.within(capacity), axis=1)
        rows = jnp.arange(worst.shape[0])
        better = where & (score > self.scores[rows, worst])
        replace = lambda old, new: old.at[rows, worst].set(jnp.where(_expand(better, new), new, old[rows, worst]))
        return Hypotheses(
            tokens=replace(self.tokens, tokens),
            lengths=replace(self.lengths, jnp.broadcast_to(length, worst.shape)),
            scores=replace(self.scores, score),
        )

    def within(self, capacity: jax.Array) -> Float[Array, "B K"]:
        """Return the scores, +inf past the first `capacity`."""
        return jnp.where(jnp.arange(self.scores.shape[1]) < capacity, self.scores, jnp.inf)


@flax.struct.dataclass
class BeamState:
    """The K unfinished beams of each row between two steps; their first `length` tokens are valid."""

    tokens: Int[Array, "B K T"]
    scores: Float[Array, "B K"]
    length: Int[Array, ""]
    done: Bool[Array, " B"]
    hypotheses: Hypotheses
    embedding: Float[Array, "R D"]  # R = B * K
    cache: KVCache


def beam_search(
    model: Emu,
    params: Any,
    embedding: jax.Array,
    cache: KVCache,
    done: jax.Array,
    controls: Controls,
    search: Search,
) -> tuple[jax.Array, jax.Array]:
    """Search from prefilled prompts to the best hypothesis of each row. Rows that are `done` already are padding.

    Returns:
      tokens: `[B, T]`, `<s>` first.
      lengths: number of valid tokens, `[B]`.
    """
    prompt_length = cache.valid.shape[1] - search.capacity
    extend_step, cache = make_step(model, params, repeat_rows(cache, search.num_beams))
    first = first_beams(embedding, cache, done, search)

    def step(state: BeamState) -> BeamState:
        return beam_step(extend_step, model, params, state, controls, search, first_slot=prompt_length)

    last = jax.lax.while_loop(lambda state: unfinished(state, controls), step, first)
    return best_hypotheses(last, controls, search)


def first_beams(embedding: jax.Array, cache: KVCache, done: jax.Array, search: Search) -> BeamState:
    """Return the state after the prompts: `embedding` `[B, D]` is the next input, `cache` has B x K rows."""
    batch, beams = embedding.shape[0], search.num_beams
    empty = jnp.full((batch, beams, search.capacity + 1), search.bos_id, jnp.int32)
    return BeamState(
        tokens=empty,
        scores=jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, _UNUSED_BEAM), (batch, beams)),
        length=jnp.int32(1),
        done=done,
        hypotheses=Hypotheses(
            tokens=empty, lengths=jnp.ones((batch, beams), jnp.int32), scores=jnp.full((batch, beams), -jnp.inf)
        ),
        embedding=jnp.repeat(embedding, beams, axis=0),
        cache=cache,
    )


def unfinished(state: BeamState, controls: Controls) -> jax.Array:
    """Return True (a scalar) until every row is finished or has `max_new_tokens`."""
    return (state.length <= controls.max_new_tokens) & ~jnp.all(state.done)


def beam_step(
    extend_step: Step,
    model: Emu,
    params: Any,
    state: BeamState,
    controls: Controls,
    search: Search,
    *,
    first_slot: int,
    num_beams: jax.Array | None = None,
) -> BeamState:
    """Return the state after one more token. Cache slots before `first_slot` must be equal in all beams of a row.

    `num_beams` (at most `search.num_beams`, the default) may change from call to call without a new compilation.
    """
    batch, beams, max_length = state.tokens.shape
    hidden, cache = extend_step(state.embedding, state.cache)
    log_probs = jax.nn.log_softmax(next_logits(model, params, hidden), axis=-1)
    scores = process_scores(log_probs, state.tokens.reshape(-1, max_length), state.length, controls, search)
    vocabulary = scores.shape[-1]
    scores = state.scores[:, :, None] + scores.reshape(batch, beams, vocabulary)
    # Without a barrier, XLA on CPUs sorts all scores if only a part of the result is used. With one barrier for both
    # results, XLA's partitioning of top_k over several devices aborts the process.
    best, indices = map(jax.lax.optimization_barrier, jax.lax.top_k(scores.reshape(batch, -1), 2 * beams))
    origins, tokens = indices // vocabulary, indices % vocabulary
    num_beams = jnp.int32(beams) if num_beams is None else num_beams
    state, origins, tokens = _advance(state, best, origins, tokens, controls, search, num_beams)
    rows = (jnp.arange(batch)[:, None] * beams + origins).reshape(-1)
    embedding = embed_tokens(model, params, tokens.reshape(-1))
    return dataclasses.replace(state, embedding=embedding, cache=take_rows(cache, rows, first=first_slot))


def _advance(
    state: BeamState,
    best: jax.Array,
    origins: jax.Array,
    tokens: jax.Array,
    controls: Controls,
    search: Search,
    num_beams: jax.Array,
) -> tuple[BeamState, jax.Array, jax.Array]:
    """Choose the next beams and hypotheses among the 2K best continuations `[B, 2K]`, given their beams and tokens.

    Returns:
      state: with the new beams and hypotheses.
      origins: the beam that each new beam continues, `[B, K]`.
      tokens: the last token of each new beam, `[B, K]`.
    """
    beams = state.scores.shape[1]
    rows = jnp.arange(state.scores.shape[0])
    ends = tokens == search.eos_id
    hypotheses = state.hypotheses
    for rank in range(beams):
        hypotheses = hypotheses.add(
            state.tokens[rows, origins[:, rank]],
            state.length,
            best[:, rank] / _length_factor(state.length, controls),
            where=ends[:, rank] & ~state.done & (rank < num_beams),
            capacity=num_beams,
        )
    # The first K continuations without `</s>`, in order: at most K of the 2K end with it.
    chosen = jnp.argsort(ends, axis=1, stable=True)[:, :beams]
    take = lambda values: jnp.take_along_axis(values, chosen, axis=1)
    origins, tokens = take(origins), take(tokens)
    sequences = jnp.take_along_axis(state.tokens, origins[:, :, None], axis=1)
    sequences = jax.lax.dynamic_update_slice_in_dim(sequences, tokens[:, :, None], state.length, axis=2)
    done = state.done | _finished(hypotheses, best[:, 0], state.length, controls, search, num_beams)
    scores = jnp.where(jnp.arange(beams) < num_beams, take(best), -jnp.inf)
    state = dataclasses.replace(
        state, tokens=sequences, scores=scores, length=state.length + 1, done=done, hypotheses=hypotheses
    )
    return state, origins, tokens


def _finished(
    hypotheses: Hypotheses,
    best: jax.Array,
    length: jax.Array,
    controls: Controls,
    search: Search,
    num_beams: jax.Array,
) -> jax.Array:
    """Return the rows that stop by the rule of `early_stopping`; `length` is that of the sequences before this step."""
    worst = jnp.min(hypotheses.within(num_beams), axis=1)
    full = worst > -jnp.inf
    if search.early_stopping is True:
        return full
    attainable = best / _length_factor(length + 1, controls)  # the length of the best continuation
    if search.early_stopping == "never":  # a positive penalty favors the longest sequence
        longest = best / _length_factor(controls.max_new_tokens + 1, controls)
        attainable = jnp.where(controls.length_penalty > 0, longest, attainable)
    return full & (worst >= attainable)


def best_hypotheses(
    state: BeamState, controls: Controls, search: Search, *, num_beams: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the best sequence of each row and its length.

    Beams of rows that did not finish are hypotheses too. `</s>` ends a sequence that is not at the maximum length.
    """
    batch, beams = state.scores.shape
    num_beams = jnp.int32(beams) if num_beams is None else num_beams
    hypotheses = state.hypotheses
    for beam in range(beams):
        score = state.scores[:, beam] / _length_factor(state.length, controls)
        hypotheses = hypotheses.add(state.tokens[:, beam], state.length, score, where=~state.done, capacity=num_beams)
    rows, winner = jnp.arange(batch), jnp.argmax(hypotheses.scores, axis=1)
    tokens, lengths = hypotheses.tokens[rows, winner], hypotheses.lengths[rows, winner]
    fits = lengths <= controls.max_new_tokens
    end = jnp.where(fits, search.eos_id, tokens[rows, lengths - 1])
    index = jnp.where(fits, lengths, lengths - 1)
    return tokens.at[rows, index].set(end), lengths + fits


def _length_factor(length: jax.Array, controls: Controls) -> jax.Array:
    return jnp.power(length.astype(jnp.float32), controls.length_penalty)


def _expand(flags: jax.Array, like: jax.Array) -> jax.Array:
    return flags.reshape(flags.shape + (1,) * (like.ndim - flags.ndim))
