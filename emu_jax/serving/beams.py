"""Beam search for one request at a time, some steps per call, so that other answers continue between them."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from emu_jax.generation.beam import BeamState, beam_step, best_hypotheses, first_beams, unfinished
from emu_jax.generation.decode import embed_tokens
from emu_jax.generation.sampling import Controls, Search
from emu_jax.models.config import EmuConfig
from emu_jax.models.emu import Emu
from emu_jax.models.outputs import KVCache
from emu_jax.serving.config import EngineConfig
from emu_jax.serving.programs import Start
from emu_jax.serving.state import TextState, greedy_controls
from emu_jax.serving.weights import Weights
from emu_jax.typing import Array, Bool, Int


@flax.struct.dataclass
class BeamLane:
    """The one beam search: a cache with a row for each of `max_beams` beams, `num_beams` of which are in use."""

    beams: BeamState
    controls: Controls
    num_beams: Int[Array, ""]


@flax.struct.dataclass
class BeamAnswer:
    """The best hypothesis so far: `<s>` and the new ids, `length` of which count; final once `done`."""

    tokens: Int[Array, " T"]
    length: Int[Array, ""]
    done: Bool[Array, ""]


def empty_lane(config: EmuConfig, engine: EngineConfig, search: Search) -> BeamLane:
    """Return a lane in which no search runs. `search.capacity` is the context, `search.num_beams` the most beams."""
    decoder, K, T = config.decoder, engine.max_beams, engine.context
    zeros = lambda *shape: jnp.zeros(shape, config.dtype)
    layers = range(decoder.num_layers)
    per_layer: Any = [tuple(zeros(K, decoder.num_kv_heads, T, decoder.head_dim) for _ in layers) for _ in range(2)]
    cache = KVCache(
        key=per_layer[0],
        value=per_layer[1],
        valid=jnp.zeros((K, T), bool),
        index=jnp.int32(0),
        positions=jnp.zeros(K, jnp.int32),
    )
    beams = first_beams(zeros(1, decoder.width), cache, jnp.ones(1, bool), search)
    return BeamLane(beams=beams, controls=greedy_controls(()), num_beams=jnp.int32(1))


def begin_beams(
    weights: Weights, state: TextState, lane: BeamLane, start: Start, num_beams: jax.Array, *, model: Emu,
    search: Search,
) -> BeamLane:  # fmt: skip
    """Copy a slot's prompt into all beams. The slot can serve another request afterwards."""
    beams = search.num_beams
    copy = lambda layer: jnp.repeat(jax.lax.dynamic_slice_in_dim(layer, start.slot, 1, axis=0), beams, axis=0)
    context = state.key[0].shape[2]
    key, value = (tuple(map(copy, layers)) for layers in (state.key, state.value))
    per_layer: Any = {"key": key, "value": value}
    cache = KVCache(
        **per_layer,
        valid=jnp.broadcast_to(jnp.arange(context) < start.position, (beams, context)),
        index=start.position,
        positions=jnp.broadcast_to(start.position, (beams,)),
    )
    embedding = embed_tokens(model, weights.params, start.token[None]).astype(state.embedding.dtype)
    return BeamLane(
        beams=first_beams(embedding, cache, jnp.zeros(1, bool), search),
        controls=start.row.controls,
        num_beams=num_beams,
    )


def step_beams(
    weights: Weights, lane: BeamLane, *, model: Emu, search: Search, steps: int
) -> tuple[BeamLane, BeamAnswer]:
    """Run up to `steps` steps of the search."""
    controls, num_beams = lane.controls, lane.num_beams
    extend_step = functools.partial(
        model.apply, {"params": weights.params}, blocks=weights.blocks, method=Emu.extend_step
    )

    def step(carry: tuple[jax.Array, BeamState]) -> tuple[jax.Array, BeamState]:
        count, beams = carry
        params = weights.params
        return count + 1, beam_step(
            extend_step, model, params, beams, controls, search, first_slot=0, num_beams=num_beams
        )

    def running(carry: tuple[jax.Array, BeamState]) -> jax.Array:
        return (carry[0] < steps) & unfinished(carry[1], controls)

    _, beams = jax.lax.while_loop(running, step, (jnp.int32(0), lane.beams))
    tokens, lengths = best_hypotheses(beams, controls, search, num_beams=num_beams)
    answer = BeamAnswer(tokens=tokens[0], length=lengths[0], done=~unfinished(beams, controls))
    return dataclasses.replace(lane, beams=beams), answer
