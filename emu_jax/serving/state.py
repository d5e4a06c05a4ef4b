"""Arrays that stay on the device between calls: the slots' caches and the state of each answer."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.generation.sampling import Controls, TextOptions
from emu_jax.layers.attention import LayerCache
from emu_jax.models.config import EmuConfig
from emu_jax.serving.config import EngineConfig
from emu_jax.typing import Array, Bool, Float, Int

# NumPy scalars for programs' arguments; to mypy they are the arrays that they become.
INT: Any = np.int32
UINT: Any = np.uint32
FLOAT: Any = np.float32
BOOL: Any = np.bool_


@dataclasses.dataclass(frozen=True)
class SlotCache(LayerCache):
    """A layer's cache whose rows are written at separate positions: `index` is `[B]`.

    A row whose index is past the last position is not written.
    """

    def append(self, key: jax.Array, value: jax.Array) -> "SlotCache":
        """Return the cache with one more key and value per row, each `[B, 1, K, H]`."""
        rows = jnp.arange(key.shape[0])

        def write(slots: jax.Array, new: jax.Array) -> jax.Array:
            return slots.at[rows, :, self.index].set(new[:, 0].astype(slots.dtype), mode="drop")

        return SlotCache(key=write(self.key, key), value=write(self.value, value), index=self.index)


jax.tree_util.register_dataclass(SlotCache, data_fields=["key", "value", "index"], meta_fields=[])


@flax.struct.dataclass
class Row:
    """The decoding options of one slot. Leaves are scalars for one slot, `[S]` for all of them.

    max_images: images that the answer may hold; 0: text only.
    alternate: an image begins where a text ends, until there are `max_images`.
    only_image: the answer ends with its first image.
    """

    controls: Controls
    max_images: Int[Array, "*S"]
    alternate: Bool[Array, "*S"]
    only_image: Bool[Array, "*S"]


@flax.struct.dataclass
class TextState:
    """S slots with `context` positions each; one array per decoder layer.

    bank: visual embeddings of the prompts' images, in order.
    tokens: ids of each answer, `<s>` first (and wherever there is none yet); `length` of them count.
    texts, images: text tokens and complete images in the answer.
    phase: positions left in the current image: N + 1 after `[IMG]`, 1 at `[/IMG]`, 0 in text.
    embeddings: of the newest image.
    embedding: the decoder's next input; `position` is its index in the cache.
    """

    key: tuple[Float[Array, "S K T H"], ...]
    value: tuple[Float[Array, "S K T H"], ...]
    bank: Float[Array, "S IQ D"]
    tokens: Int[Array, "S T"]
    length: Int[Array, " S"]
    texts: Int[Array, " S"]
    images: Int[Array, " S"]
    phase: Int[Array, " S"]
    done: Bool[Array, " S"]
    position: Int[Array, " S"]
    embedding: Float[Array, "S D"]
    embeddings: Float[Array, "S Q D"]
    rows: Row


def text_row(controls: Controls) -> Row:
    """Return the options of one slot that writes text only."""
    return Row(controls=controls, max_images=INT(0), alternate=BOOL(False), only_image=BOOL(False))


def scalar_controls(options: TextOptions) -> Controls:
    """Return the options of one request as NumPy scalars."""
    return Controls(
        max_new_tokens=INT(options.max_new_tokens),
        min_length=INT(options.min_length),
        length_penalty=FLOAT(options.length_penalty),
        repetition_penalty=FLOAT(options.repetition_penalty),
        temperature=FLOAT(options.temperature),
        top_k=INT(options.top_k),
        top_p=FLOAT(options.top_p),
        seed=UINT(options.seed % 2**32),
    )


def prompt_images(config: EmuConfig, context: int) -> int:
    """Return how many images fit in a prompt of `context` tokens."""
    return max(1, context // (config.causal_former.num_image_tokens + 2))


def greedy_controls(shape: tuple[int, ...]) -> Controls:
    """Return the controls of greedy decoding, as arrays of `shape`."""
    return jax.tree.map(lambda scalar: jnp.full(shape, scalar), scalar_controls(TextOptions()))


def empty_text_state(config: EmuConfig, engine: EngineConfig, *, bos_id: int) -> TextState:
    """Return the state with every slot free."""
    decoder, S, T = config.decoder, engine.slots, engine.context
    N, D = config.causal_former.num_image_tokens, config.decoder.width
    cache = (S, decoder.num_kv_heads, T, decoder.head_dim)
    zeros = lambda *shape: jnp.zeros(shape, config.dtype)
    layers = range(decoder.num_layers)
    counts = {name: jnp.zeros(S, jnp.int32) for name in ("length", "texts", "images", "phase", "position")}
    rows = Row(
        controls=greedy_controls((S,)),
        max_images=jnp.zeros(S, jnp.int32),
        alternate=jnp.zeros(S, bool),
        only_image=jnp.zeros(S, bool),
    )
    return TextState(
        key=tuple(zeros(*cache) for _ in layers),
        value=tuple(zeros(*cache) for _ in layers),
        bank=zeros(S, prompt_images(config, T) * N, D),
        tokens=jnp.full((S, T + 1), bos_id, jnp.int32),
        done=jnp.ones(S, bool),
        embedding=zeros(S, D),
        embeddings=zeros(S, N, D),
        rows=rows,
        **counts,
    )
