"""Feed-forward blocks: plain (EVA, T5) and gated (LLaMA)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax.ad_checkpoint import checkpoint_name

from emu_jax.layers.linear import ActivationDense, DenseGeneral, LoraConfig
from emu_jax.layers.materialize import materialize
from emu_jax.layers.saved import GATE, UP
from emu_jax.sharding import axes
from emu_jax.sharding.specs import logical_constraint

_HIDDEN = (axes.ACT_BATCH, axes.ACT_LENGTH, axes.ACT_MLP)
_RESIDUAL = (axes.ACT_BATCH, axes.ACT_LENGTH, axes.ACT_EMBED)


class Mlp(nn.Module):
    """Return `down(dropout(activation(up(x))))`."""

    mlp_dim: int
    activation: Callable[[jax.Array], jax.Array]
    use_bias: bool = False
    dropout: float = 0.0
    lora: LoraConfig | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        dtypes = {"use_bias": self.use_bias, "dtype": self.dtype, "param_dtype": self.param_dtype, "lora": self.lora}
        project = DenseGeneral((self.mlp_dim,), (axes.EMBED,), (axes.MLP,), name="up", **dtypes)
        up = project(x, deterministic=deterministic)
        up = checkpoint_name(up, UP)
        features, names = (x.shape[-1],), ((axes.MLP,), (axes.EMBED,))
        if self.dropout and not deterministic:
            hidden = logical_constraint(self.activation(up), _HIDDEN)
            hidden = nn.Dropout(self.dropout)(hidden, deterministic=False)
            out = DenseGeneral(features, *names, name="down", **dtypes)(hidden, deterministic=False)
        else:
            activation = lambda up: logical_constraint(self.activation(up), _HIDDEN)
            project = ActivationDense(features, *names, activation=activation, name="down", **dtypes)
            out = project(up, deterministic=deterministic)
        return materialize(logical_constraint(out, _RESIDUAL))


class GatedMlp(nn.Module):
    """Return `down(silu(gate(x)) * up(x))`, without biases (SwiGLU, Shazeer 2020)."""

    mlp_dim: int
    lora: LoraConfig | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype, "lora": self.lora}
        gate, up = (
            DenseGeneral((self.mlp_dim,), (axes.EMBED,), (axes.MLP,), name=name, **dtypes)(
                x, deterministic=deterministic
            )
            for name in ("gate", "up")
        )
        gate, up = checkpoint_name(gate, GATE), checkpoint_name(up, UP)
        activation = lambda gate, up: logical_constraint(nn.silu(gate) * up, _HIDDEN)
        down = ActivationDense((x.shape[-1],), (axes.MLP,), (axes.EMBED,), activation=activation, name="down", **dtypes)
        out = down(gate, up, deterministic=deterministic)
        return materialize(logical_constraint(out, _RESIDUAL))
