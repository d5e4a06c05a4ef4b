"""Named outputs of Emu."""

import flax.struct
import jax


@flax.struct.dataclass
class EmuOutput:
    """Outputs of a forward pass over packed rows.

    Attributes:
      logits: `[B, L, V]`, scores of the next token; -1e30 for the padding of the vocabulary.
      visual_predictions: `[B, L, D]`, predictions of the input embedding at the next position.
      hidden: `[B, L, D]`, states of the decoder after its final norm, the input of both heads.
      input_embeddings: `[B, L, D]`, inputs of the decoder; the regression targets are these, shifted by one position.
      visual_embeddings: `[B, I, Q, D]`, outputs of the causal former; None without images.
    """

    logits: jax.Array
    visual_predictions: jax.Array
    hidden: jax.Array
    input_embeddings: jax.Array
    visual_embeddings: jax.Array | None


@flax.struct.dataclass
class KVCache:
    """Keys and values of all decoder layers, in S slots that are filled from the left.

    Attributes:
      key: `[layers, B, K, S, H]`.
      value: `[layers, B, K, S, H]`.
      valid: bool `[B, S]`, True where a slot holds a token of the row.
      index: int32 scalar, the slot of the next token; equal for all rows, because prompts are left-padded.
      positions: int32 `[B]`, the rotary position of each row's next token.
    """

    key: jax.Array
    value: jax.Array
    valid: jax.Array
    index: jax.Array
    positions: jax.Array
