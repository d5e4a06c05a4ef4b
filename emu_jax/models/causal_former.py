"""The causal former: T5 decoder blocks (Raffel et al. 2020) over learned queries, with cross-attention to an image.

Query i attends to the queries up to i and to every image feature. So the visual embeddings are in causal order, and the
decoder can predict them one after the other.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from emu_jax.layers.attention import Attention
from emu_jax.layers.linear import DenseGeneral, LoraConfig
from emu_jax.layers.mlp import Mlp
from emu_jax.layers.norms import RMSNorm
from emu_jax.layers.positions import relative_buckets
from emu_jax.layers.stack import stack
from emu_jax.models.config import CausalFormerConfig
from emu_jax.sharding import axes
from emu_jax.sharding.specs import logical_constraint
from emu_jax.typing import Array, Bool, Float, typechecked


class CausalFormerBlock(nn.Module):
    """Causal self-attention with relative bias, cross-attention without bias, ReLU MLP. Pre-norm, logits not scaled."""

    config: CausalFormerConfig
    lora: LoraConfig | None
    deterministic: bool
    dtype: str
    param_dtype: str

    @nn.compact
    @typechecked
    def __call__(
        self,
        x: Float[Array, "n Q E"],
        _per_layer: None,
        broadcast: tuple[Float[Array, "n P C"], Float[Array, "1 N Q Q"], Bool[Array, "1 Q Q"]],
    ) -> tuple[Float[Array, "n Q E"], None]:
        config = self.config
        features, bias, mask = broadcast
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm, adapted = {"eps": config.norm_eps, **dtypes}, {"lora": self.lora, **dtypes}
        heads = {"num_heads": config.num_heads, "head_dim": config.head_dim, "scale": 1.0, **adapted}
        mode = {"deterministic": self.deterministic}
        drop = nn.Dropout(config.dropout, deterministic=self.deterministic)
        attend = Attention(name="self_attention", **heads)
        x += drop(attend(RMSNorm(name="self_attention_norm", **norm)(x), bias=bias, mask=mask, **mode)[0])
        attend = Attention(name="cross_attention", **heads)
        x += drop(attend(RMSNorm(name="cross_attention_norm", **norm)(x), features, **mode)[0])
        mlp = Mlp(config.mlp_dim, nn.relu, dropout=config.dropout, name="mlp", **adapted)
        x += drop(mlp(RMSNorm(name="mlp_norm", **norm)(x), **mode))
        return logical_constraint(x, (axes.ACT_BATCH, axes.ACT_LENGTH, axes.ACT_EMBED)), None


class CausalFormer(nn.Module):
    """Image features to `visual_embeddings`: Q vectors of the decoder's width per image."""

    config: CausalFormerConfig
    out_features: int
    lora: LoraConfig | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    @typechecked
    def __call__(self, image_features: Float[Array, "n P C"], *, deterministic: bool = True) -> Float[Array, "n Q D"]:
        config = self.config
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        length, width = config.num_image_tokens, config.width
        query_init = nn.with_logical_partitioning(
            nn.initializers.normal(config.embedding_std), (axes.QUERIES, axes.EMBED)
        )
        queries = jnp.asarray(self.param("causal_queries", query_init, (length, width), self.param_dtype), self.dtype)
        drop = nn.Dropout(config.dropout, deterministic=deterministic)
        x = drop(jnp.broadcast_to(queries, (image_features.shape[0], length, width)))
        causal = jnp.tril(jnp.ones((1, length, length), bool))
        x, _ = stack(
            CausalFormerBlock,
            length=config.num_layers,
            remat=config.remat,
            saved_activations=config.saved_activations,
            name="blocks",
            config=config,
            lora=self.lora,
            deterministic=deterministic,
            **dtypes,
        )(x, None, (image_features, self._relative_bias(length), causal))
        x = drop(RMSNorm(eps=config.norm_eps, name="final_norm", **dtypes)(x))
        names = ((axes.EMBED_IN,), (axes.EMBED,))
        project = DenseGeneral((self.out_features,), *names, use_bias=True, lora=self.lora, name="projection", **dtypes)
        return project(x, deterministic=deterministic)

    @typechecked
    def _relative_bias(self, length: int) -> Float[Array, "1 N Q Q"]:
        """Return the relative biases, which all blocks share. The release stores the table in its first block."""
        config = self.config
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (axes.RELPOS_BUCKETS, axes.HEADS))
        table = self.param("relative_bias", init, (config.relpos_buckets, config.num_heads), self.param_dtype)
        buckets = relative_buckets(
            length, length, buckets=config.relpos_buckets, max_distance=config.relpos_max_distance
        )
        return jnp.asarray(table, jnp.float32)[buckets].transpose(2, 0, 1)[None]
