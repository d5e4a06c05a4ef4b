"""The two output heads of the decoder: the next token, and the next visual embedding."""

import flax.linen as nn
import jax.numpy as jnp

from emu_jax.layers.linear import DenseGeneral
from emu_jax.models.config import DecoderConfig
from emu_jax.sharding import axes
from emu_jax.sharding.specs import logical_constraint
from emu_jax.typing import Array, Float, typechecked

_PADDING_LOGIT = -1e30


class LanguageModelHead(nn.Module):
    """Float32 logits over the padded vocabulary. Padding ids have logit -1e30 and so no probability."""

    config: DecoderConfig
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    @typechecked
    def __call__(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        padded = self.config.padded_vocab_size
        project = DenseGeneral(
            (padded,), (axes.EMBED,), (axes.VOCAB,), name="projection", dtype=self.dtype, param_dtype=self.param_dtype
        )
        logits = project(hidden).astype(jnp.float32)
        return jnp.where(jnp.arange(padded) < self.config.vocab_size, logits, _PADDING_LOGIT)


class RegressionHead(nn.Module):
    """Linear layer without bias: the decoder's state at a position to the visual embedding at the next position."""

    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    @typechecked
    def __call__(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        predictions = DenseGeneral((hidden.shape[-1],), (axes.EMBED_IN,), (axes.EMBED,), name="projection", **dtypes)
        out = predictions(hidden)
        if out.ndim == 3:
            out = logical_constraint(out, (axes.ACT_BATCH, axes.ACT_LENGTH, axes.ACT_EMBED))
        return out
