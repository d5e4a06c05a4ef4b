"""One rule from a decoder width to every size of a model, and the counts N and C of what it makes."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from emu_jax.bounds import Checked, Depth, Positive, Size
from emu_jax.models.config import EmuConfig
from emu_jax.models.emu import Emu
from emu_jax.sharding.specs import unbox
from emu_jax.training.partition import flatten

Sizes = dict[str, int]  # a field of `model` -> its value, as in "decoder.width": 256


@dataclasses.dataclass(frozen=True)
class LadderConfig(Checked):
    """The rule by which all sizes follow from the decoder's width.

    Attributes:
      width_per_layer: decoder width over decoder depth.
      head_dim: of every attention; widths are multiples of it.
      mlp_ratio: decoder MLP over decoder width (three matrices; 8/3 has the size of a plain MLP of 4).
      vision_width: vision width over decoder width.
      vision_depth: vision depth over decoder depth.
      former_width: causal former width over decoder width.
      former_depth: causal former depth over decoder depth.
      min_layers: of each part.
    """

    width_per_layer: Positive = 64.0
    head_dim: Size = 64
    mlp_ratio: Positive = 8 / 3
    vision_width: Positive = 0.7
    vision_depth: Positive = 1.0
    former_width: Positive = 0.7
    former_depth: Positive = 0.4
    min_layers: Depth = 1

    def sizes(self, width: int) -> Sizes:
        """Return the fields of `model` for a decoder of this width.

        LadderConfig().sizes(512)["decoder.num_layers"] -> 8
        """
        depth = self._depth(width / self.width_per_layer)
        vision, former = self._width(width * self.vision_width), self._width(width * self.former_width)
        return {
            "decoder.width": width,
            "decoder.num_layers": depth,
            "decoder.num_heads": width // self.head_dim,
            "decoder.num_kv_heads": width // self.head_dim,
            "decoder.mlp_dim": _multiple(width * self.mlp_ratio, 32),
            "vision.width": vision,
            "vision.num_layers": self._depth(depth * self.vision_depth),
            "vision.num_heads": vision // self.head_dim,
            "vision.mlp_dim": 4 * vision,
            "causal_former.width": former,
            "causal_former.num_layers": self._depth(depth * self.former_depth),
            "causal_former.num_heads": former // self.head_dim,
            "causal_former.head_dim": self.head_dim,
            "causal_former.mlp_dim": 4 * former,
        }

    def _width(self, width: float) -> int:
        return _multiple(width, self.head_dim)

    def _depth(self, depth: float) -> int:
        return max(round(depth), self.min_layers)


def _multiple(value: float, step: int) -> int:
    return max(round(value / step), 1) * step


@dataclasses.dataclass(frozen=True)
class Counts:
    """Parameters of the matrix multiplications (kernels) by part; token tables, norms and biases are not counted.

    Attributes:
      vision: Nv, of the vision encoder.
      causal_former: Nc.
      decoder: N, with both heads.
      vision_tokens: that an image has in the vision encoder.
      image_tokens: that the causal former makes of it.
    """

    vision: int
    causal_former: int
    decoder: int
    vision_tokens: int
    image_tokens: int

    @property
    def total(self) -> int:
        """All three."""
        return self.vision + self.causal_former + self.decoder

    @property
    def image_params_tokens(self) -> int:
        """Nv Dv + Nc Dc of one image."""
        return self.vision * self.vision_tokens + self.causal_former * self.image_tokens

    def flops(self, *, tokens: float, images: float) -> float:
        """Return C = 6 (Nv Dv + Nc Dc + N D), forward and backward, of so many decoder tokens and images."""
        return 6 * (self.decoder * tokens + self.image_params_tokens * images)


_PARTS = {
    "vision": ("vision_encoder/", "visual_norm/"),
    "causal_former": ("causal_former/",),
    "decoder": ("decoder/", "lm_head/", "regression_head/"),
}


@functools.cache
def count(model: EmuConfig) -> Counts:
    """Count the parameters of `model` from its shapes; allocates nothing."""
    inputs = jax.eval_shape(lambda: _inputs(model))
    boxed = jax.eval_shape(Emu(model, image_token_id=0).init, jax.random.key(0), *inputs)["params"]
    sizes = {path: math.prod(leaf.shape) for path, leaf in flatten(unbox(boxed)).items() if path.endswith("/kernel")}
    found = {part: sum(n for path, n in sizes.items() if path.startswith(starts)) for part, starts in _PARTS.items()}
    return Counts(**found, vision_tokens=model.vision.num_tokens, image_tokens=model.causal_former.num_image_tokens)


def _inputs(model: EmuConfig) -> tuple[jax.Array, jax.Array]:
    """Return one row with one image."""
    size = model.vision.image_size
    tokens = jnp.zeros((1, 2 + model.causal_former.num_image_tokens), jnp.int32)
    return tokens, jnp.zeros((1, 1, size, size, 3), jnp.uint8)
