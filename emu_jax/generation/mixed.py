"""Generation of alternating text and images in one program: `[IMG]` starts N regression steps, then text follows."""

import dataclasses
import enum
import functools
from typing import Annotated, Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.bounds import Between, Checked, CountOrZero
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import UserError
from emu_jax.generation.decode import embed_tokens, make_step, next_embedding, next_logits, prefill
from emu_jax.generation.options import MAX_IMAGES
from emu_jax.generation.prompt import PromptBatch
from emu_jax.generation.sampling import Controls, Search, choose, process_scores
from emu_jax.models.emu import Emu
from emu_jax.models.outputs import KVCache
from emu_jax.typing import Array, Bool, Float, Int


class OpenImage(enum.Enum):
    """The condition that starts an image."""

    MODEL = "model"  # the model generates `[IMG]`; the released model never learned to
    FIRST = "first"  # the output starts with an image; later ones as in MODEL
    ALTERNATE = "alternate"  # `</s>` at the end of a text, up to the maximum number of images


def parse_open_image(name: OpenImage | str) -> OpenImage:
    """Return the condition of that name; raise UserError for other names."""
    try:
        return OpenImage(name)
    except ValueError:
        known = ", ".join(repr(condition.value) for condition in OpenImage)
        raise UserError(f"open_image must be one of {known}, not {name!r}.") from None


@dataclasses.dataclass(frozen=True)
class ImageTokens(Checked):
    """Token ids of images, the maximum number of images, and the condition that starts one."""

    boi_id: CountOrZero
    eoi_id: CountOrZero
    image_token_id: CountOrZero
    max_images: Annotated[int, Between(1, MAX_IMAGES)]
    open_image: OpenImage


@flax.struct.dataclass
class MixedOutput:
    """Generated tokens as in `TextOutput`, and the embeddings of their images in order."""

    tokens: Int[Array, "B T"]
    lengths: Int[Array, " B"]
    embeddings: Float[Array, "B images N D"]


@flax.struct.dataclass
class _State:
    tokens: Int[Array, "B T"]
    lengths: Int[Array, " B"]
    length: Int[Array, ""]
    texts: Int[Array, " B"]  # number of text tokens
    done: Bool[Array, " B"]
    remaining: Int[Array, " B"]  # tokens to the end of the image: N + 1 after [IMG], 1 before [/IMG], 0 in text
    images: Int[Array, " B"]  # number of complete images
    embeddings: Float[Array, "B images N D"]
    embedding: Float[Array, "B D"]
    cache: KVCache


@functools.partial(jax.jit, static_argnames=("model", "search", "image_tokens"))
def generate_mixed(
    params: Any, prompts: PromptBatch, controls: Controls, *, model: Emu, search: Search, image_tokens: ImageTokens
) -> MixedOutput:
    """Generate with a `while_loop` in which each row is either in a text or in an image.

    `controls.max_new_tokens` limits the text tokens; `search.capacity` has N + 2 more positions per image. With
    `OpenImage.FIRST` the prompts end in `[IMG]`.
    """
    N, ids = model.config.causal_former.num_image_tokens, image_tokens
    embedding, cache = prefill(model, params, prompts, capacity=search.capacity)
    extend_step, cache = make_step(model, params, cache)
    batch, width = embedding.shape
    rows = jnp.arange(batch)
    never = jnp.array([search.pad_id, ids.eoi_id, ids.image_token_id])

    def unfinished(state: _State) -> jax.Array:
        return (state.length <= search.capacity) & ~jnp.all(state.done)

    def step(state: _State) -> _State:
        hidden, cache = extend_step(state.embedding, state.cache)
        predicted = next_embedding(model, params, hidden)
        enough = state.images >= ids.max_images
        scores = process_scores(next_logits(model, params, hidden), state.tokens, state.length, controls, search)
        scores = scores.at[:, never].set(-jnp.inf)
        scores = scores.at[:, ids.boi_id].set(jnp.where(enough, -jnp.inf, scores[:, ids.boi_id]))
        chosen = choose(scores, state.length, controls, search)
        if ids.open_image is OpenImage.ALTERNATE:
            chosen = jnp.where((chosen == search.eos_id) & ~enough, ids.boi_id, chosen)
        in_image, closes = state.remaining > 1, state.remaining == 1
        token = jnp.where(in_image, ids.image_token_id, jnp.where(closes, ids.eoi_id, chosen))
        token = jnp.where(state.done, search.bos_id, token)
        is_text = ~state.done & (state.remaining == 0) & (token != ids.boi_id)
        texts = state.texts + is_text
        image, query = jnp.minimum(state.images, ids.max_images - 1), jnp.clip(N + 1 - state.remaining, 0, N - 1)
        stored = jnp.where(in_image[:, None], predicted, state.embeddings[rows, image, query])
        return _State(
            tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.length, axis=1),
            lengths=state.lengths + ~state.done,
            length=state.length + 1,
            texts=texts,
            done=state.done | (is_text & ((token == search.eos_id) | (texts >= controls.max_new_tokens))),
            remaining=jnp.where(token == ids.boi_id, N + 1, jnp.maximum(state.remaining - 1, 0)),
            images=state.images + closes,
            embeddings=state.embeddings.at[rows, image, query].set(stored),
            embedding=jnp.where(in_image[:, None], predicted, embed_tokens(model, params, token)),
            cache=cache,
        )

    zeros = jnp.zeros(batch, jnp.int32)
    first = _State(
        tokens=jnp.full((batch, search.capacity + 1), search.bos_id, jnp.int32),
        lengths=zeros + 1,
        length=jnp.int32(1),
        texts=zeros,
        done=~jnp.any(prompts.is_token, axis=1),
        remaining=zeros + (N + 1 if ids.open_image is OpenImage.FIRST else 0),
        images=zeros,
        embeddings=jnp.zeros((batch, ids.max_images, N, width), embedding.dtype),
        embedding=embedding,
        cache=cache,
    )
    last = jax.lax.while_loop(unfinished, step, first)
    return MixedOutput(tokens=last.tokens, lengths=last.lengths, embeddings=last.embeddings.astype(jnp.float32))


def interleave(tokens: np.ndarray, embeddings: np.ndarray, *, tokenizer: Tokenizer) -> list[str | np.ndarray]:
    """Return the new ids `[T]` and embeddings `[images, N, D]` of a row as texts and embeddings `[N, D]` in order.

    Empty texts and an incomplete last image are left out.
    """
    N = embeddings.shape[1]
    parts: list[str | np.ndarray] = []
    ids: list[int] = []
    images = run = 0

    def end_text() -> None:
        text = tokenizer.decode(ids).strip()
        ids.clear()
        if text:
            parts.append(text)

    for token in map(int, tokens):
        if token != tokenizer.image_token_id:
            ids.append(token)
            run = 0
            continue
        run += 1
        if run == N:
            end_text()
            parts.append(embeddings[images])
            images += 1
    end_text()
    return parts
