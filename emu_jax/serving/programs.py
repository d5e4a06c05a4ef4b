"""The compiled programs on the slots: encode images, prefill a chunk, begin an answer, decode, read embeddings."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from emu_jax.generation.decode import embed_tokens, next_embedding, next_logits
from emu_jax.generation.sampling import Search
from emu_jax.layers.attention import LayerCache
from emu_jax.models.emu import Emu
from emu_jax.serving.choice import next_scores, next_tokens
from emu_jax.serving.state import Row, SlotCache, TextState
from emu_jax.serving.weights import Weights, run_layers
from emu_jax.typing import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Ids:
    """The special tokens, and the number of `<image>` tokens per image."""

    bos_id: int
    eos_id: int
    pad_id: int
    boi_id: int
    eoi_id: int
    image_token_id: int
    num_image_tokens: int


@flax.struct.dataclass
class Chunk:
    """C prompt tokens of one slot, at positions start, start + 1, ...; those past the prompt's end are padding.

    image_rows: at `<image>` tokens the row of the slot's bank to read, elsewhere -1.
    """

    slot: Int[Array, ""]
    start: Int[Array, ""]
    tokens: Int[Array, " C"]
    image_rows: Int[Array, " C"]


@flax.struct.dataclass
class Start:
    """The last prompt token, at `position`, from which the answer follows; `phase` as in `TextState`."""

    slot: Int[Array, ""]
    token: Int[Array, ""]
    position: Int[Array, ""]
    phase: Int[Array, ""]
    row: Row


@flax.struct.dataclass
class Decoded:
    """Up to `decode_steps` new ids of each slot in order, -1 where it had none, and which answers are complete."""

    tokens: Int[Array, "steps S"]
    done: Bool[Array, " S"]


def encode(
    weights: Weights, state: TextState, images: Float[Array, "n H W 3"], slots: Int[Array, " n"],
    indices: Int[Array, " n"], *, model: Emu,
) -> TextState:  # fmt: skip
    """Write the visual embeddings of normalized images to the banks: image `indices[i]` of slot `slots[i]`.

    A slot past the last one marks padding.
    """
    embeddings = model.apply({"params": weights.params}, images, method=Emu.embed_images)
    N = embeddings.shape[1]
    rows = indices[:, None] * N + jnp.arange(N)
    bank = state.bank.at[slots[:, None], rows].set(embeddings.astype(state.bank.dtype), mode="drop")
    return dataclasses.replace(state, bank=bank)


def prefill(weights: Weights, state: TextState, chunk: Chunk, *, model: Emu) -> TextState:
    """Read a chunk of a prompt into its slot's cache. Padding is written too, and overwritten by the answer."""
    words = model.apply({"params": weights.params}, chunk.tokens[None], method=Emu.embed)[0]
    visual = state.bank[chunk.slot][jnp.maximum(chunk.image_rows, 0)]
    x = jnp.where(chunk.image_rows[:, None] >= 0, visual, words)[None]
    positions = chunk.start + jnp.arange(len(chunk.tokens))
    context = state.key[0].shape[2]
    mask = jnp.arange(context) <= positions[:, None]
    read = lambda layer: jax.lax.dynamic_slice_in_dim(layer, chunk.slot, 1, axis=0)
    caches = tuple(LayerCache(read(k), read(v), chunk.start) for k, v in zip(state.key, state.value, strict=True))
    _, caches = run_layers(model, weights, x, caches, positions=positions[None], mask=mask[None])
    write = lambda layer, row: jax.lax.dynamic_update_slice_in_dim(layer, row, chunk.slot, axis=0)
    return dataclasses.replace(
        state,
        key=tuple(write(layer, cache.key) for layer, cache in zip(state.key, caches, strict=True)),
        value=tuple(write(layer, cache.value) for layer, cache in zip(state.value, caches, strict=True)),
    )


def begin(weights: Weights, state: TextState, start: Start, *, model: Emu, ids: Ids) -> TextState:
    """Set up a slot whose prompt, except its last token, is in the cache."""
    slot = start.slot
    put = lambda array, value: array.at[slot].set(value)
    return dataclasses.replace(
        state,
        tokens=put(state.tokens, ids.bos_id),
        length=put(state.length, 1),
        texts=put(state.texts, 0),
        images=put(state.images, 0),
        phase=put(state.phase, start.phase),
        done=put(state.done, False),
        position=put(state.position, start.position),
        embedding=put(state.embedding, embed_tokens(model, weights.params, start.token[None])[0]),
        rows=jax.tree.map(put, state.rows, start.row),
    )


def decode(
    weights: Weights, state: TextState, active: Bool[Array, " S"], *, model: Emu, ids: Ids, search: Search, steps: int
) -> tuple[TextState, Decoded]:
    """Decode `steps` positions of each `active` slot that is not done. Rows do not depend on each other.

    In text a row chooses a token; in an image (N regression steps) the prediction is its next input.
    """
    slots = len(active)

    def unfinished(carry: tuple[jax.Array, TextState, jax.Array]) -> jax.Array:
        step, state, _ = carry
        return (step < steps) & jnp.any(active & ~state.done)

    def one(carry: tuple[jax.Array, TextState, jax.Array]) -> tuple[jax.Array, TextState, jax.Array]:
        step, state, written = carry
        live = active & ~state.done
        state, tokens = _decode_once(weights, state, live, model=model, ids=ids, search=search)
        return step + 1, state, written.at[step].set(jnp.where(live, tokens, -1))

    blank = jnp.full((steps, slots), -1, jnp.int32)
    _, state, written = jax.lax.while_loop(unfinished, one, (jnp.int32(0), state, blank))
    return state, Decoded(tokens=written, done=state.done)


def read_embeddings(weights: Weights, state: TextState, slot: jax.Array) -> tuple[TextState, jax.Array]:
    """Return the embeddings `[N, D]` of a slot's newest image, float32."""
    del weights
    return state, state.embeddings[slot].astype(jnp.float32)


def _decode_once(
    weights: Weights, state: TextState, live: jax.Array, *, model: Emu, ids: Ids, search: Search
) -> tuple[TextState, jax.Array]:
    """One position of each `live` row; others stay as they are."""
    params, N = weights.params, ids.num_image_tokens
    slots = jnp.arange(len(live))
    hidden, state = _read_inputs(weights, state, live, model=model)
    predicted = next_embedding(model, params, hidden)
    rows, controls = state.rows, state.rows.controls
    mixed, enough = rows.max_images > 0, state.images >= rows.max_images

    scores = next_scores(next_logits(model, params, hidden), state.tokens, state.length, controls, search)
    never = jnp.zeros(scores.shape[1], bool).at[jnp.array([ids.pad_id, ids.eoi_id, ids.image_token_id])].set(True)
    scores = jnp.where(mixed[:, None] & never, -jnp.inf, scores)
    scores = scores.at[:, ids.boi_id].set(jnp.where(mixed & enough, -jnp.inf, scores[:, ids.boi_id]))
    word = next_tokens(scores, state.length, controls, search)
    word = jnp.where(rows.alternate & (word == ids.eos_id) & ~enough, ids.boi_id, word)

    in_image, closes = state.phase > 1, state.phase == 1
    token = jnp.where(in_image, ids.image_token_id, jnp.where(closes, ids.eoi_id, word))
    opens = mixed & (token == ids.boi_id) & ~in_image
    wrote = (state.phase == 0) & ~opens
    texts = state.texts + wrote
    finished = wrote & ((token == ids.eos_id) | (texts >= controls.max_new_tokens))
    finished |= rows.only_image & (state.phase == 2)
    index = jnp.clip(N + 1 - state.phase, 0, N - 1)
    stored = jnp.where((live & in_image)[:, None], predicted, state.embeddings[slots, index])
    embedding = jnp.where(in_image[:, None], predicted, embed_tokens(model, params, token))
    advance = lambda new, old: jnp.where(live.reshape(live.shape + (1,) * (old.ndim - 1)), new, old)
    state = dataclasses.replace(
        state,
        tokens=state.tokens.at[slots, jnp.where(live, state.length, state.tokens.shape[1])].set(token, mode="drop"),
        length=state.length + live,
        texts=advance(texts, state.texts),
        images=state.images + (live & closes),
        phase=advance(jnp.where(opens, N + 1, jnp.maximum(state.phase - 1, 0)), state.phase),
        done=state.done | (live & finished),
        position=state.position + live,
        embedding=advance(embedding.astype(state.embedding.dtype), state.embedding),
        embeddings=state.embeddings.at[slots, index].set(stored.astype(state.embeddings.dtype)),
    )
    return state, token


def _read_inputs(weights: Weights, state: TextState, live: jax.Array, *, model: Emu) -> tuple[jax.Array, TextState]:
    """The decoder's states `[S, D]` at each row's position, whose key and value join the cache of `live` rows."""
    context = state.key[0].shape[2]
    index = jnp.where(live, state.position, context)
    mask = jnp.arange(context) <= state.position[:, None]
    caches: Any = tuple(SlotCache(k, v, index) for k, v in zip(state.key, state.value, strict=True))
    hidden, caches = run_layers(
        model,
        weights,
        state.embedding[:, None],
        caches,
        positions=state.position[:, None],
        mask=mask[:, None],
    )
    state = dataclasses.replace(
        state, key=tuple(cache.key for cache in caches), value=tuple(cache.value for cache in caches)
    )
    return hidden[:, 0], state
