"""CLIP's vision encoder with its projection (Radford et al. 2021), used by Stable Diffusion's safety checker."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu_jax.bounds import Checked, Depth, Epsilon, Pixels, Size
from emu_jax.errors import UserError
from emu_jax.layers.attention import Attention
from emu_jax.layers.linear import DenseGeneral
from emu_jax.layers.mlp import Mlp
from emu_jax.layers.norms import LayerNorm
from emu_jax.layers.patches import patches
from emu_jax.layers.stack import stack
from emu_jax.sharding import axes
from emu_jax.typing import Array, Float, typechecked

_ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: nn.gelu(x, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig(Checked):
    """CLIPVisionConfig and the projection's width. The defaults are those of transformers."""

    image_size: Pixels = 224
    patch_size: Pixels = 32
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Depth = 12
    num_attention_heads: Depth = 12
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    projection_dim: Size = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_act not in _ACTIVATIONS:
            raise UserError(f"The CLIP encoder's hidden_act must be one of {', '.join(_ACTIVATIONS)}.")
        if self.hidden_size % self.num_attention_heads or self.image_size % self.patch_size:
            raise UserError(
                "The CLIP encoder's hidden_size must be a multiple of num_attention_heads, and image_size one of "
                "patch_size."
            )

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any]) -> "ClipVisionConfig":
        """Read a CLIPConfig. Older ones have the encoder's sizes under `vision_config_dict`."""
        sizes = (config.get("vision_config") or {}) | (config.get("vision_config_dict") or {})
        names = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in sizes.items() if name in names and value is not None}
        return cls(**values | {"projection_dim": config.get("projection_dim", cls.projection_dim)})


class ClipBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`; `mask` is that of the text tower, None for images.

    `config` is that of either tower: they have the same names.
    """

    config: Any

    @nn.compact
    def __call__(self, x: jax.Array, _per_layer: None, mask: jax.Array | None) -> tuple[jax.Array, None]:
        config = self.config
        heads, eps = config.num_attention_heads, config.layer_norm_eps
        attention = Attention(heads, config.hidden_size // heads, qkv_bias=True, out_bias=True, name="attention")
        x += attention(LayerNorm(eps, name="attention_norm")(x), mask=mask)[0]
        mlp = Mlp(config.intermediate_size, _ACTIVATIONS[config.hidden_act], use_bias=True, name="mlp")
        return x + mlp(LayerNorm(eps, name="mlp_norm")(x)), None


class ClipVision(nn.Module):
    """Embeds normalized images: the class token after the last layer, normalized and projected. Float32."""

    config: ClipVisionConfig

    @nn.compact
    @typechecked
    def __call__(self, images: Float[Array, "n H W C"]) -> Float[Array, "n D"]:
        config, width, eps = self.config, self.config.hidden_size, self.config.layer_norm_eps
        pixels = patches(images, config.patch_size)
        x = DenseGeneral((width,), (axes.PATCH,), (axes.EMBED,), name="patch_embed")(pixels)
        small = nn.initializers.normal(0.02)
        class_token = self.param("class_token", nn.with_logical_partitioning(small, (axes.EMBED,)), (width,))
        x = jnp.concatenate([jnp.broadcast_to(class_token, (len(x), 1, width)), x], axis=1)
        position_init = nn.with_logical_partitioning(small, (axes.POSITIONS, axes.EMBED))
        x = x + self.param("position_embedding", position_init, x.shape[1:])
        x = LayerNorm(eps, name="pre_norm")(x)
        x, _ = stack(ClipBlock, length=config.num_hidden_layers, name="blocks", config=config)(x, None, None)
        pooled = LayerNorm(eps, name="post_norm")(x[:, 0])
        return DenseGeneral((config.projection_dim,), (axes.EMBED_IN,), (axes.EMBED,), name="projection")(pooled)
