"""How much useful arithmetic a step holds, counted from the model's sizes, and the share of the peak that it reaches.

A multiply-add is two operations; padding of rows, empty image slots and recomputation are not useful. The backward pass
of a part costs twice its forward pass where the part's parameters train, once where only the gradient of its inputs is
wanted, and nothing where neither is.
"""

import dataclasses

from emu_jax.models.config import CausalFormerConfig, DecoderConfig, EmuConfig, VisionConfig


@dataclasses.dataclass(frozen=True)
class ForwardFlops:
    """Operations of one forward pass, by part: a token place costs `decoder` and `heads`, an image `vision` and
    `causal_former`."""

    decoder: float
    heads: float
    vision: float
    causal_former: float


def forward_flops(config: EmuConfig, *, context: float) -> ForwardFlops:
    """Counts one place of a row and one image.

    Args:
      config: sizes.
      context: how many places a place attends to on average: half a document's length.
    """
    decoder = config.decoder
    return ForwardFlops(
        decoder=_decoder(decoder, context=context),
        heads=2 * decoder.width * (decoder.vocab_size + decoder.width),
        vision=_vision(config.vision),
        causal_former=_causal_former(config.causal_former, config.vision, width_out=decoder.width),
    )


def _decoder(c: DecoderConfig, *, context: float) -> float:
    kv = c.num_kv_heads * c.head_dim
    projections = 2 * c.width * (2 * c.width + 2 * kv) + 2 * 3 * c.width * c.mlp_dim
    return c.num_layers * (projections + 4 * c.width * context)


def _vision(c: VisionConfig) -> float:
    projections = 2 * (4 * c.width * c.width + 2 * c.width * c.mlp_dim)
    layer = c.num_tokens * (projections + 4 * c.width * c.num_tokens)
    return c.num_layers * layer + 2 * (c.num_tokens - 1) * 3 * c.patch_size**2 * c.width


def _causal_former(c: CausalFormerConfig, vision: VisionConfig, *, width_out: int) -> float:
    inner = c.num_heads * c.head_dim
    own = 2 * c.width * (4 * inner + 2 * inner + 2 * c.mlp_dim)  # self-attention, cross-attention's q and out, MLP
    attention = 4 * inner * (c.num_image_tokens / 2 + vision.num_tokens)
    read = 2 * vision.num_tokens * vision.width * 2 * inner  # cross-attention's keys and values
    layers = c.num_layers * (c.num_image_tokens * (own + attention) + read)
    return layers + 2 * c.num_image_tokens * c.width * width_out
