"""The LLaMA decoder (Touvron et al. 2023): RMSNorm, rotary positions, SwiGLU. Its inputs are embeddings, not tokens."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from emu_jax.layers.attention import Attention, LayerCache
from emu_jax.layers.linear import LoraConfig
from emu_jax.layers.masks import PackedCausal
from emu_jax.layers.mlp import GatedMlp
from emu_jax.layers.norms import RMSNorm
from emu_jax.layers.positions import RotaryTables, rotary_tables
from emu_jax.layers.stack import stack
from emu_jax.models.config import DecoderConfig
from emu_jax.models.outputs import KVCache
from emu_jax.sharding import axes
from emu_jax.sharding.specs import logical_constraint
from emu_jax.typing import Array, Bool, Float, Int, typechecked


class LlamaBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`."""

    config: DecoderConfig
    lora: LoraConfig | None
    deterministic: bool
    dtype: str
    param_dtype: str

    @nn.compact
    @typechecked
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: LayerCache | None,
        broadcast: tuple[RotaryTables, Bool[Array, "B T S"] | PackedCausal],
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        config = self.config
        rotary, mask = broadcast
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = {"eps": config.norm_eps, **dtypes}
        attend = Attention(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            lora=self.lora,
            name="attention",
            **dtypes,
        )
        attended, cache = attend(
            RMSNorm(name="attention_norm", **norm)(x),
            rotary=rotary,
            mask=mask,
            cache=cache,
            deterministic=self.deterministic,
        )
        x += attended
        mlp = GatedMlp(config.mlp_dim, lora=self.lora, name="mlp", **dtypes)
        x += mlp(RMSNorm(name="mlp_norm", **norm)(x), deterministic=self.deterministic)
        return logical_constraint(x, (axes.ACT_BATCH, axes.ACT_LENGTH, axes.ACT_EMBED)), cache


class LlamaDecoder(nn.Module):
    """Token embedding, scanned blocks and final norm. The heads are separate modules (`models/heads.py`)."""

    config: DecoderConfig
    lora: LoraConfig | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    def setup(self) -> None:
        config = self.config
        init = nn.with_logical_partitioning(nn.initializers.normal(config.embedding_std), (axes.VOCAB, axes.EMBED))
        self.token_embedding = self.param(
            "token_embedding", init, (config.padded_vocab_size, config.width), self.param_dtype
        )
        self.final_norm = RMSNorm(eps=config.norm_eps, dtype=self.dtype, param_dtype=self.param_dtype)

    @typechecked
    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Return the token embeddings."""
        return jnp.asarray(self.token_embedding, self.dtype)[tokens]

    @nn.compact
    @typechecked
    def __call__(
        self,
        embeddings: Float[Array, "B T D"],
        *,
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T S"] | PackedCausal,
        cache: KVCache | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Return the states after the final norm. With a cache, S is its number of slots, and new keys are appended."""
        config = self.config
        x = logical_constraint(embeddings, (axes.ACT_BATCH, axes.ACT_LENGTH, axes.ACT_EMBED))
        rotary = rotary_tables(positions, head_dim=config.head_dim, theta=config.rope_theta)
        blocks = stack(
            LlamaBlock,
            length=config.num_layers,
            remat=config.remat,
            saved_activations=config.saved_activations,
            cached=cache is not None,
            name="blocks",
            config=config,
            lora=self.lora,
            deterministic=deterministic,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        x, layers = blocks(x, _per_layer(cache), (rotary, mask))
        if cache is not None:
            index = cache.index + embeddings.shape[1]
            cache = dataclasses.replace(cache, key=layers.key, value=layers.value, index=index)
        return self.final_norm(x), cache

    @typechecked
    def run_layers(
        self,
        x: Float[Array, "B T D"],
        caches: Sequence[Any],
        blocks: Sequence[Any],
        *,
        positions: Int[Array, "B T"],
        mask: Bool[Array, "#B T S"],
    ) -> tuple[Float[Array, "B T D"], tuple[Any, ...]]:
        """Run the layers one after the other instead of in a scan, which copies the cache and the weights of each.

        Args:
          caches: a `LayerCache`, or another object with its interface, for each layer.
          blocks: the parameters of each layer.

        Returns:
          hidden: states after the final norm.
          caches: with the keys and values of this call.
        """
        rotary = rotary_tables(positions, head_dim=self.config.head_dim, theta=self.config.rope_theta)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block = LlamaBlock(self.config, lora=self.lora, deterministic=True, **dtypes, parent=None)
        filled = []
        for params, cache in zip(blocks, caches, strict=True):
            x, cache = block.apply({"params": params}, x, cache, (rotary, mask))
            filled.append(cache)
        return self.final_norm(x), tuple(filled)


def _per_layer(cache: KVCache | None) -> LayerCache | None:
    if cache is None:
        return None
    index = jnp.broadcast_to(cache.index, cache.key.shape[:1])
    return LayerCache(key=cache.key, value=cache.value, index=index)


def empty_cache(config: DecoderConfig, *, batch: int, slots: int, dtype: str) -> KVCache:
    """Return an empty cache with `slots` slots per row."""
    shape = (config.num_layers, batch, config.num_kv_heads, slots, config.head_dim)
    return KVCache(
        key=jnp.zeros(shape, dtype),
        value=jnp.zeros(shape, dtype),
        valid=jnp.zeros((batch, slots), bool),
        index=jnp.zeros((), jnp.int32),
        positions=jnp.zeros((batch,), jnp.int32),
    )
