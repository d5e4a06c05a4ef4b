"""CLIP's text tower with its projection (Radford et al. 2021), and its conversion table."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu_jax.bounds import Checked, Depth, Epsilon, Size, Tokens, VocabSize
from emu_jax.convert.table import MATRIX, VECTOR, Row, Table
from emu_jax.diffusion.clip_vision import ClipBlock
from emu_jax.layers.linear import DenseGeneral
from emu_jax.layers.norms import LayerNorm
from emu_jax.layers.stack import stack
from emu_jax.sharding import axes
from emu_jax.typing import Array, Float, Int

_KEEP = (0, 1)


@dataclasses.dataclass(frozen=True)
class ClipTextConfig(Checked):
    """CLIPTextConfig and the width of the projection; the defaults are those that transformers leaves out."""

    vocab_size: VocabSize = 49408
    max_position_embeddings: Tokens = 77
    hidden_size: Size = 512
    intermediate_size: Size = 2048
    num_hidden_layers: Depth = 12
    num_attention_heads: Depth = 8
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    projection_dim: Size = 512

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any]) -> "ClipTextConfig":
        """Read a CLIPConfig; older ones keep the sizes of the tower under `text_config_dict`."""
        tower = (config.get("text_config") or {}) | (config.get("text_config_dict") or {})
        names = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in tower.items() if name in names and value is not None}
        return cls(**values | {"projection_dim": config.get("projection_dim", cls.projection_dim)})


class ClipText(nn.Module):
    """Tokens to embeddings: the state at `last` (the end token), normed and projected. Float32."""

    config: ClipTextConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "n L"], last: Int[Array, " n"]) -> Float[Array, "n D"]:
        config, length, eps = self.config, tokens.shape[1], self.config.layer_norm_eps
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (axes.VOCAB, axes.EMBED))
        table = self.param("token_embedding", init, (config.vocab_size, config.hidden_size))
        init = nn.with_logical_partitioning(nn.initializers.normal(0.01), (axes.POSITIONS, axes.EMBED))
        positions = self.param("position_embedding", init, (config.max_position_embeddings, config.hidden_size))
        x = table[tokens] + positions[:length]
        mask = jnp.tril(jnp.ones((1, length, length), bool))
        x, _ = stack(ClipBlock, length=config.num_hidden_layers, name="blocks", config=config)(x, None, mask)
        pooled = LayerNorm(eps, name="post_norm")(x[jnp.arange(len(x)), last])
        return DenseGeneral((config.projection_dim,), (axes.EMBED_IN,), (axes.EMBED,), name="projection")(pooled)


def clip_text_table(config: ClipTextConfig) -> Table:
    """Return the rows of all parameters of `ClipText` by the names of transformers."""
    D, M, out = config.hidden_size, config.intermediate_size, config.projection_dim
    N, layers, V, L = (
        config.num_attention_heads,
        config.num_hidden_layers,
        config.vocab_size,
        config.max_position_embeddings,
    )
    H, block, ours = D // N, "text_model.encoder.layers.{layer}.", "blocks/"
    shapes = {
        "self_attn.q_proj": ("attention/query", (D,), (N, H), (D, D)),
        "self_attn.k_proj": ("attention/key", (D,), (N, H), (D, D)),
        "self_attn.v_proj": ("attention/value", (D,), (N, H), (D, D)),
        "self_attn.out_proj": ("attention/out", (N, H), (D,), (D, D)),
        "mlp.fc1": ("mlp/up", (D,), (M,), (M, D)),
        "mlp.fc2": ("mlp/down", (M,), (D,), (D, M)),
    }
    rows = [
        Row("text_model.embeddings.token_embedding.weight", (V, D), "token_embedding", (V, D), _KEEP),
        Row("text_model.embeddings.position_embedding.weight", (L, D), "position_embedding", (L, D), _KEEP),
        Row("text_projection.weight", (out, D), "projection/kernel", (D, out), MATRIX),
    ]
    for name, (path, inputs, outputs, shape) in shapes.items():
        rows.append(Row(f"{block}{name}.weight", shape, f"{ours}{path}/kernel", (*inputs, *outputs), MATRIX, layers))
        rows.append(Row(f"{block}{name}.bias", shape[:1], f"{ours}{path}/bias", outputs, VECTOR, layers))
    norms = {
        f"{block}layer_norm1": (f"{ours}attention_norm", layers),
        f"{block}layer_norm2": (f"{ours}mlp_norm", layers),
        "text_model.final_layer_norm": ("post_norm", None),
    }
    for name, (path, count) in norms.items():
        for theirs, leaf in (("weight", "scale"), ("bias", "bias")):
            rows.append(Row(f"{name}.{theirs}", (D,), f"{path}/{leaf}", (D,), VECTOR, count))
    return tuple(rows)


def end_positions(tokens: jax.Array, end_id: int) -> jax.Array:
    """Return the position of the first end token of each row."""
    return jnp.argmax(tokens == end_id, axis=1)
