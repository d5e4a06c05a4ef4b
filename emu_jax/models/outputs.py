"""What an Emu returns, by name."""

import flax.struct

from emu_jax.typing import Array, Bool, Float, Int


@flax.struct.dataclass
class EmuOutput:
    """A forward pass over packed rows.

    logits: scores of the next token; ids past the true vocabulary are at -1e30.
    visual_predictions: at each place, what the next input embedding would be were it visual.
    hidden: the decoder's states after its final norm, which both heads read.
    input_embeddings: what the decoder read; `regression_targets` are these, one place on.
    visual_embeddings: the causal former's outputs.
    """

    logits: Float[Array, "B L V"]
    visual_predictions: Float[Array, "B L D"]
    hidden: Float[Array, "B L D"]
    input_embeddings: Float[Array, "B L D"]
    visual_embeddings: Float[Array, "B I Q D"] | None


@flax.struct.dataclass
class KVCache:
    """Keys and values of every decoder layer, stacked; S cache slots, filled from the left.

    index: the slot where the next token goes (int32 scalar, the same for all rows: prompts are left-padded).
    valid: which slots hold a real token of the row.
    positions: rotary position of each row's next token.
    """

    key: Float[Array, "layers B K S H"]
    value: Float[Array, "layers B K S H"]
    valid: Bool[Array, "B S"]
    index: Int[Array, ""]
    positions: Int[Array, " B"]
