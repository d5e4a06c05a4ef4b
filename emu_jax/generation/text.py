"""Text generation in one compiled program: prefill, then greedy search, sampling or beam search until `</s>`."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from emu_jax.generation.beam import beam_search
from emu_jax.generation.decode import embed_tokens, make_step, next_logits, prefill
from emu_jax.generation.prompt import PromptBatch
from emu_jax.generation.sampling import Controls, Search, choose, process_scores
from emu_jax.models.emu import Emu
from emu_jax.models.outputs import KVCache
from emu_jax.typing import Array, Bool, Float, Int


@flax.struct.dataclass
class TextOutput:
    """Generated tokens.

    tokens: `<s>`, the new ids, `</s>` unless the maximum length came first; the rest is padding.
    lengths: number of valid tokens, including `<s>`.
    """

    tokens: Int[Array, "B T"]
    lengths: Int[Array, " B"]


@flax.struct.dataclass
class _State:
    tokens: Int[Array, "B T"]
    lengths: Int[Array, " B"]
    length: Int[Array, ""]
    done: Bool[Array, " B"]
    embedding: Float[Array, "B D"]
    cache: KVCache


@functools.partial(jax.jit, static_argnames=("model", "search"))
def generate_tokens(params: Any, prompts: PromptBatch, controls: Controls, *, model: Emu, search: Search) -> TextOutput:
    """Generate until every row has its `</s>`, or `max_new_tokens`."""
    embedding, cache = prefill(model, params, prompts, capacity=search.capacity)
    done = ~jnp.any(prompts.is_token, axis=1)  # padding rows
    if search.num_beams > 1:
        tokens, lengths = beam_search(model, params, embedding, cache, done, controls, search)
        return TextOutput(tokens=tokens, lengths=lengths)
    return _search_without_beams(model, params, embedding, cache, done, controls, search)


def _search_without_beams(
    model: Emu, params: Any, embedding: jax.Array, cache: KVCache, done: jax.Array, controls: Controls, search: Search
) -> TextOutput:
    batch = embedding.shape[0]
    extend_step, cache = make_step(model, params, cache)

    def unfinished(state: _State) -> jax.Array:
        return (state.length <= controls.max_new_tokens) & ~jnp.all(state.done)

    def step(state: _State) -> _State:
        hidden, cache = extend_step(state.embedding, state.cache)
        scores = next_logits(model, params, hidden)
        scores = process_scores(scores, state.tokens, state.length, controls, search)
        token = jnp.where(state.done, search.bos_id, choose(scores, state.length, controls, search))
        return _State(
            tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.length, axis=1),
            lengths=state.lengths + ~state.done,
            length=state.length + 1,
            done=state.done | (token == search.eos_id),
            embedding=embed_tokens(model, params, token),
            cache=cache,
        )

    first = _State(
        tokens=jnp.full((batch, search.capacity + 1), search.bos_id, jnp.int32),
        lengths=jnp.ones(batch, jnp.int32),
        length=jnp.int32(1),
        done=done,
        embedding=embedding,
        cache=cache,
    )
    last = jax.lax.while_loop(unfinished, step, first)
    return TextOutput(tokens=last.tokens, lengths=last.lengths)
