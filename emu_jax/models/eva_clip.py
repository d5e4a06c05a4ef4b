"""The vision encoder of EVA-01-CLIP-g (Fang et al. 2022, Sun et al. 2023): a pre-norm ViT with q and v biases.

Emu does not use its final norm and projection: the causal former attends to the tokens before them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from emu_jax.layers.attention import attend
from emu_jax.layers.linear import DenseGeneral, LoraConfig, OutputProjection, QKVProjection
from emu_jax.layers.materialize import materialize
from emu_jax.layers.mlp import Mlp
from emu_jax.layers.norms import LayerNorm
from emu_jax.layers.patches import patches
from emu_jax.layers.saved import ATTENTION_OUT, QKV
from emu_jax.layers.stack import stack
from emu_jax.models.config import VisionConfig
from emu_jax.pixels import CLIP_MEAN, CLIP_STD
from emu_jax.sharding import axes
from emu_jax.sharding.specs import logical_constraint
from emu_jax.typing import Array, ArrayLike, Float, Shaped, typechecked

_TOKENS = (axes.ACT_BATCH, axes.ACT_LENGTH, axes.ACT_EMBED)


@typechecked
def normalize_pixels(images: Shaped[ArrayLike, "*n H W C"]) -> Float[Array, "*n H W C"]:
    """Return float32 pixels normalized for CLIP. Float images are returned as they are: they are already normalized."""
    if images.dtype != jnp.uint8:
        return jnp.asarray(images, jnp.float32)
    return (jnp.asarray(images, jnp.float32) / 255.0 - jnp.asarray(CLIP_MEAN)) / jnp.asarray(CLIP_STD)


class EvaAttention(nn.Module):
    """Self-attention with one kernel for q, k and v, and biases for q and v only."""

    num_heads: int
    lora: LoraConfig | None
    deterministic: bool
    dtype: str
    param_dtype: str

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, "n P D"]) -> Float[Array, "n P D"]:
        width = x.shape[-1]
        heads = (self.num_heads, width // self.num_heads)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype, "lora": self.lora}
        project = QKVProjection((3, *heads), (axes.EMBED,), (axes.QKV, axes.HEADS, axes.KV), name="qkv", **dtypes)
        query, key, value = project(x, deterministic=self.deterministic)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axes.HEADS, axes.KV))
        query += jnp.asarray(self.param("query_bias", zeros, heads, self.param_dtype), self.dtype)
        value += jnp.asarray(self.param("value_bias", zeros, heads, self.param_dtype), self.dtype)
        query, key, value = (checkpoint_name(a, QKV) for a in (query, key, value))
        out = attend(query, key, value, scale=heads[1] ** -0.5)
        project = OutputProjection((width,), (axes.HEADS, axes.KV), (axes.EMBED,), use_bias=True, name="out", **dtypes)
        out = project(out, deterministic=self.deterministic)
        return materialize(checkpoint_name(out, ATTENTION_OUT))


class EvaBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`."""

    config: VisionConfig
    lora: LoraConfig | None
    deterministic: bool
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, _per_layer: None, _broadcast: None) -> tuple[jax.Array, None]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = {"eps": self.config.norm_eps, **dtypes}
        adapted = {"lora": self.lora, **dtypes}
        attend = EvaAttention(self.config.num_heads, deterministic=self.deterministic, name="attention", **adapted)
        x += attend(LayerNorm(name="attention_norm", **norm)(x))
        mlp = Mlp(self.config.mlp_dim, _exact_gelu, use_bias=True, name="mlp", **adapted)
        x += mlp(LayerNorm(name="mlp_norm", **norm)(x), deterministic=self.deterministic)
        return logical_constraint(x, _TOKENS), None


class EvaVisionTransformer(nn.Module):
    """Normalized images to `image_features`: the class token first, then the patches row by row."""

    config: VisionConfig
    lora: LoraConfig | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    @typechecked
    def __call__(self, images: Float[Array, "n H W C"], *, deterministic: bool = True) -> Float[Array, "n P D"]:
        config, width = self.config, self.config.width
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        embed = DenseGeneral((width,), (axes.PATCH,), (axes.EMBED,), use_bias=True, name="patch_embed", **dtypes)
        x = embed(patches(images, config.patch_size))
        init = nn.initializers.normal(config.embedding_std)
        class_init = nn.with_logical_partitioning(init, (axes.EMBED,))
        class_token = jnp.asarray(self.param("class_token", class_init, (width,), self.param_dtype), self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(class_token, (x.shape[0], 1, width)), x], axis=1)
        position_init = nn.with_logical_partitioning(init, (axes.POSITIONS, axes.EMBED))
        positions = self.param("position_embedding", position_init, (config.num_tokens, width), self.param_dtype)
        x = logical_constraint(x + jnp.asarray(positions, self.dtype), _TOKENS)
        x, _ = stack(
            EvaBlock,
            length=config.num_layers,
            remat=config.remat,
            saved_activations=config.saved_activations,
            name="blocks",
            config=config,
            lora=self.lora,
            deterministic=deterministic,
            **dtypes,
        )(x, None, None)
        return x


def _exact_gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)
