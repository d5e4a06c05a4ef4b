"""Beam search, beam for beam as transformers 4.29 does it (its `BeamSearchScorer`), for all rows at once.

At each step the 2K best continuations of a row's K beams are looked at in order: a `</s>` among the first K closes a
hypothesis, the first K others are the next beams. A row keeps its K best hypotheses and stops when the worst of them
beats what the best beam could still reach.
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

_NOT_A_BEAM = -1e9  # at first all beams are the same: only one may have successors


@flax.struct.dataclass
class Hypotheses:
    """The K best closed sequences of each row, in no order; score -inf: a free slot."""

    tokens: Int[Array, "B K T"]
    lengths: Int[Array, "B K"]
    scores: Float[Array, "B K"]

    def add(
        self, tokens: jax.Array, length: jax.Array, score: jax.Array, *, where: jax.Array, capacity: jax.Array
    ) -> "Hypotheses":
        """Put one sequence `[B, T]` in place of the worst of the first `capacity`, if it is better, `where` True."""
        worst = jnp.argmin(self.within(capacity), axis=1)
        rows = jnp.arange(worst.shape[0])
        taken = where & (score > self.scores[rows, worst])
        put = lambda old, new: old.at[rows, worst].set(jnp.where(_as(taken, new), new, old[rows, worst]))
        return Hypotheses(
            tokens=put(self.tokens, tokens),
            lengths=put(self.lengths, jnp.broadcast_to(length, worst.shape)),
            scores=put(self.scores, score),
        )

    def within(self, capacity: jax.Array) -> Float[Array, "B K"]:
        """Return the scores, +inf past the first `capacity`."""
        return jnp.where(jnp.arange(self.scores.shape[1]) < capacity, self.scores, jnp.inf)


@flax.struct.dataclass
class BeamState:
    """K open beams of each row between two steps; `length` of their tokens count."""

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
    """From prefilled prompts to the best hypothesis of each row (those `done` already only fill a bucket).

    Returns tokens `[B, T]`, `<s>` first, and how many of them count, `[B]`.
    """
    prompt = cache.valid.shape[1] - search.room
    extend_step, cache = make_step(model, params, repeat_rows(cache, search.num_beams))
    first = first_beams(embedding, cache, done, search)

    def step(state: BeamState) -> BeamState:
        return beam_step(extend_step, model, params, state, controls, search, first_slot=prompt)

    last = jax.lax.while_loop(lambda state: unfinished(state, controls), step, first)
    return best_hypotheses(last, controls, search)


def first_beams(embedding: jax.Array, cache: KVCache, done: jax.Array, search: Search) -> BeamState:
    """Return the state after the prompts: `embedding` `[B, D]` is the next input, `cache` has B x K rows."""
    batch, beams = embedding.shape[0], search.num_beams
    blank = jnp.full((batch, beams, search.room + 1), search.bos_id, jnp.int32)
    return BeamState(
        tokens=blank,
        scores=jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, _NOT_A_BEAM), (batch, beams)),
        length=jnp.int32(1),
        done=done,
        hypotheses=Hypotheses(
            tokens=blank, lengths=jnp.ones((batch, beams), jnp.int32), scores=jnp.full((batch, beams), -jnp.inf)
        ),
        embedding=jnp.repeat(embedding, beams, axis=0),
        cache=cache,
    )


def unfinished(state: BeamState, controls: Controls) -> jax.Array:
    """Return True (a scalar) while some row has neither its end nor `max_new_tokens`."""
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
    """Return the state one token later; cache slots before `first_slot` are the same in all beams of a row.

    `num_beams` (at most `search.num_beams`, the default) may change from call to call without compiling again.
    """
    batch, beams, room = state.tokens.shape
    hidden, cache = extend_step(state.embedding, state.cache)
    log_probs = jax.nn.log_softmax(next_logits(model, params, hidden), axis=-1)
    scores = process_scores(log_probs, state.tokens.reshape(-1, room), state.length, controls, search)
    vocabulary = scores.shape[-1]
    scores = state.scores[:, :, None] + scores.reshape(batch, beams, vocabulary)
    # What reads only a part of the best would make XLA on CPUs sort all scores.
    # One barrier each: with one for both, XLA's partitioning of top_k over several devices aborts the process.
    best, places = map(jax.lax.optimization_barrier, jax.lax.top_k(scores.reshape(batch, -1), 2 * beams))
    origins, tokens = places // vocabulary, places % vocabulary
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
    """From the 2K best continuations `[B, 2K]`, their beams and tokens, to the next beams and hypotheses.

    Gives back, with the state, which beam each next one goes on from and with which token, `[B, K]`.
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
    # The first K continuations that do not end, in order: at most K of the 2K end.
    kept = jnp.argsort(ends, axis=1, stable=True)[:, :beams]
    take = lambda values: jnp.take_along_axis(values, kept, axis=1)
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
    """Which rows stop, by the rule of `early_stopping`; `length` is that of the sequences before this step."""
    worst = jnp.min(hypotheses.within(num_beams), axis=1)
    full = worst > -jnp.inf
    if search.early_stopping is True:
        return full
    attainable = best / _length_factor(length + 1, controls)  # the length that `best` is of
    if search.early_stopping == "never":  # a positive penalty favours the longest
        longest = best / _length_factor(controls.max_new_tokens + 1, controls)
        attainable = jnp.where(controls.length_penalty > 0, longest, attainable)
    return full & (worst >= attainable)


def best_hypotheses(
    state: BeamState, controls: Controls, search: Search, *, num_beams: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Open beams of rows that did not finish are hypotheses too; then the best of each row, closed if there is room."""
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
    place = jnp.where(fits, lengths, lengths - 1)
    return tokens.at[rows, place].set(end), lengths + fits


def _length_factor(length: jax.Array, controls: Controls) -> jax.Array:
    return jnp.power(length.astype(jnp.float32), controls.length_penalty)


def _as(flags: jax.Array, like: jax.Array) -> jax.Array:
    return flags.reshape(flags.shape + (1,) * (like.ndim - flags.ndim))
