"""Text and images in turn, in one program: where the model opens an image, N regression steps follow, then text."""

import dataclasses
import enum
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import UserError
from emu_jax.generation.decode import embed_tokens, make_step, next_embedding, next_logits, prefill
from emu_jax.generation.prompt import PromptBatch
from emu_jax.generation.sampling import Controls, Search, choose, process_scores
from emu_jax.models.emu import Emu
from emu_jax.models.outputs import KVCache
from emu_jax.typing import Array, Bool, Float, Int


class OpenImage(enum.Enum):
    """When an image begins."""

    MODEL = "model"  # when the model says `[IMG]`; the released one never learned to
    FIRST = "first"  # at once, and then when the model says so
    ALTERNATE = "alternate"  # wherever a text ends with `</s>`, until there are enough


@dataclasses.dataclass(frozen=True)
class ImageTokens:
    """The ids that the program must know, and what it may do with them."""

    boi_id: int
    eoi_id: int
    image_token_id: int
    max_images: int
    when: OpenImage

    def __post_init__(self) -> None:
        if self.max_images < 1:
            raise UserError(f"max_images must be at least 1, not {self.max_images}.")


@flax.struct.dataclass
class MixedOutput:
    """What was written: tokens as in `TextOutput`, and the embeddings of the images among them, in order."""

    tokens: Int[Array, "B T"]
    lengths: Int[Array, " B"]
    embeddings: Float[Array, "B images N D"]


@flax.struct.dataclass
class _State:
    tokens: Int[Array, "B T"]
    lengths: Int[Array, " B"]
    length: Int[Array, ""]
    texts: Int[Array, " B"]  # text tokens written
    done: Bool[Array, " B"]
    phase: Int[Array, " B"]  # places to go in the image: N + 1 after [IMG], 1 at [/IMG], 0 in text
    images: Int[Array, " B"]  # images finished
    embeddings: Float[Array, "B images N D"]
    embedding: Float[Array, "B D"]
    cache: KVCache


@functools.partial(jax.jit, static_argnames=("model", "search", "image_tokens"))
def generate_mixed(
    params: Any, prompts: PromptBatch, controls: Controls, *, model: Emu, search: Search, image_tokens: ImageTokens
) -> MixedOutput:
    """Prefill and a `while_loop` in which each row is either in text or in an image.

    `controls.max_new_tokens` counts text; `search.room` has N + 2 places for each image beside it. With
    `OpenImage.FIRST` the prompts end in `[IMG]`.
    """
    N, ids = model.config.causal_former.num_image_tokens, image_tokens
    embedding, cache = prefill(model, params, prompts, room=search.room)
    extend_step, cache = make_step(model, params, cache)
    batch, width = embedding.shape
    rows = jnp.arange(batch)
    never = jnp.zeros(model.config.decoder.vocab_size, bool).at[jnp.array([search.pad_id, ids.eoi_id])].set(True)
    never = never.at[ids.image_token_id].set(True)

    def go_on(state: _State) -> jax.Array:
        return (state.length <= search.room) & ~jnp.all(state.done)

    def step(state: _State) -> _State:
        hidden, cache = extend_step(state.embedding, state.cache)
        predicted = next_embedding(model, params, hidden)
        enough = state.images >= ids.max_images
        scores = process_scores(next_logits(model, params, hidden), state.tokens, state.length, controls, search)
        scores = jnp.where(never, -jnp.inf, scores)
        scores = scores.at[:, ids.boi_id].set(jnp.where(enough, -jnp.inf, scores[:, ids.boi_id]))
        word = choose(scores, state.length, controls, search)
        if ids.when is OpenImage.ALTERNATE:
            word = jnp.where((word == search.eos_id) & ~enough, ids.boi_id, word)
        in_image, closes = state.phase > 1, state.phase == 1
        token = jnp.where(in_image, ids.image_token_id, jnp.where(closes, ids.eoi_id, word))
        token = jnp.where(state.done, search.bos_id, token)
        wrote = ~state.done & (state.phase == 0) & (token != ids.boi_id)
        texts = state.texts + wrote
        image, place = jnp.minimum(state.images, ids.max_images - 1), jnp.clip(N + 1 - state.phase, 0, N - 1)
        kept = jnp.where(in_image[:, None], predicted, state.embeddings[rows, image, place])
        return _State(
            tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.length, axis=1),
            lengths=state.lengths + ~state.done,
            length=state.length + 1,
            texts=texts,
            done=state.done | (wrote & ((token == search.eos_id) | (texts >= controls.max_new_tokens))),
            phase=jnp.where(token == ids.boi_id, N + 1, jnp.maximum(state.phase - 1, 0)),
            images=state.images + closes,
            embeddings=state.embeddings.at[rows, image, place].set(kept),
            embedding=jnp.where(in_image[:, None], predicted, embed_tokens(model, params, token)),
            cache=cache,
        )

    zeros = jnp.zeros(batch, jnp.int32)
    first = _State(
        tokens=jnp.full((batch, search.room + 1), search.bos_id, jnp.int32),
        lengths=zeros + 1,
        length=jnp.int32(1),
        texts=zeros,
        done=~jnp.any(prompts.is_token, axis=1),
        phase=zeros + (N + 1 if ids.when is OpenImage.FIRST else 0),
        images=zeros,
        embeddings=jnp.zeros((batch, ids.max_images, N, width), embedding.dtype),
        embedding=embedding,
        cache=cache,
    )
    last = jax.lax.while_loop(go_on, step, first)
    return MixedOutput(tokens=last.tokens, lengths=last.lengths, embeddings=last.embeddings.astype(jnp.float32))


def interleave(tokens: np.ndarray, embeddings: np.ndarray, *, tokenizer: Tokenizer) -> list[str | np.ndarray]:
    """One row's new ids `[T]` and embeddings `[images, N, D]` as texts and embeddings `[N, D]` in order.

    An image that the end cut short is left out, and so is empty text.
    """
    N = embeddings.shape[1]
    found: list[str | np.ndarray] = []
    words: list[int] = []
    images = run = 0

    def close() -> None:
        text = tokenizer.decode(words).strip()
        words.clear()
        if text:
            found.append(text)

    for token in map(int, tokens):
        if token != tokenizer.image_token_id:
            words.append(token)
            run = 0
            continue
        run += 1
        if run == N:
            close()
            found.append(embeddings[images])
            images += 1
    close()
    return found
