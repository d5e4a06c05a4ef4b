"""Timestep embedding of the U-Net."""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype

from emu_jax.layers.linear import DenseGeneral
from emu_jax.sharding import axes
from emu_jax.typing import Array, Float, Int, typechecked


@typechecked
def sinusoids(
    timesteps: Int[Array, "B"], width: int, *, flip_sin_to_cos: bool = True, freq_shift: int = 0
) -> Float[Array, "B D"]:
    """Return sines and cosines of each timestep at `width / 2` frequencies from 1 to 1/10000 (Ho et al. 2020)."""
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(parts, axis=-1)


class TimeEmbedding(nn.Module):
    """`linear_2(silu(linear_1(sinusoids)))`, of four times the sinusoids' width."""

    width: int
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, timesteps: Int[Array, "B"]) -> Float[Array, "B D"]:
        dtypes = {"use_bias": True, "dtype": self.dtype, "param_dtype": self.param_dtype}
        out = (4 * self.width,)
        x = sinusoids(timesteps, self.width, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift)
        x = DenseGeneral(out, (axes.EMBED,), (axes.TIME_EMBED,), name="linear_1", **dtypes)(x)
        return DenseGeneral(out, (axes.EMBED,), (axes.TIME_EMBED,), name="linear_2", **dtypes)(nn.silu(x))
