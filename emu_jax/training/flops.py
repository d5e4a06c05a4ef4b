"""Count the useful floating-point operations of a step from the model's sizes.

A multiply-add counts as two operations. Padding of rows, empty image slots and rematerialization are not useful work.
The backward pass of a part costs twice its forward pass if its parameters are trained, once if only the gradient of its
inputs is needed, and nothing otherwise.
"""

import dataclasses

from emu_jax.models.config import CausalFormerConfig, DecoderConfig, EmuConfig, VisionConfig


@dataclasses.dataclass(frozen=True)
class ForwardFlops:
    """Operations of one forward pass: `decoder` and `heads` per token, `vision` and `causal_former` per image."""

    decoder: float
    heads: float
    vision: float
    causal_former: float


def forward_flops(config: EmuConfig, *, context: float) -> ForwardFlops:
    """Count the operations for one token and one image.

    Args:
      config: sizes of the model.
      context: mean number of tokens that a token attends to, which is half the length of a document.
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
    # Per query: self-attention, the query and output projections of cross-attention, MLP.
    projections = 2 * c.width * (4 * inner + 2 * inner + 2 * c.mlp_dim)
    attention = 4 * inner * (c.num_image_tokens / 2 + vision.num_tokens)
    cross_keys_values = 2 * vision.num_tokens * vision.width * 2 * inner
    layers = c.num_layers * (c.num_image_tokens * (projections + attention) + cross_keys_values)
    return layers + 2 * c.num_image_tokens * c.width * width_out
