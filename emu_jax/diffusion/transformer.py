"""Transformer blocks of the U-Net: self-attention over pixels, cross-attention to the conditioning, gated MLP."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from emu_jax.diffusion.resnet import IMAGE_AXES, pointwise
from emu_jax.layers.attention import Attention
from emu_jax.layers.group_norm import GroupNorm
from emu_jax.layers.linear import DenseGeneral, lecun_normal
from emu_jax.layers.norms import LayerNorm
from emu_jax.sharding import axes
from emu_jax.sharding.specs import logical_constraint
from emu_jax.typing import Array, Float, typechecked


class GatedGeluMlp(nn.Module):
    """`down(value * gelu(gate))`, value and gate from one kernel `[C, 2, M]` (Shazeer 2020, GEGLU), M = 4 C."""

    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        shape, width = x.shape, x.shape[-1]
        x = jnp.asarray(x, self.dtype).reshape(-1, width)
        # Two matmuls: the backward pass of one matmul with the full kernel takes three times as long on a CPU.
        kernel, bias = GegluProjection((width, 2, 4 * width), name="up", **dtypes)()
        value, gate = (x @ kernel[:, half] + bias[half] for half in range(2))
        hidden = logical_constraint(value * nn.gelu(gate, approximate=False), (axes.ACT_BATCH, axes.ACT_MLP))
        down = DenseGeneral((width,), (axes.MLP,), (axes.EMBED,), use_bias=True, name="down", **dtypes)
        return down(hidden).reshape(shape)


class GegluProjection(nn.Module):
    """Parameters of two linear maps: one kernel `[in, 2, out]` and one bias `[2, out]`."""

    shape: tuple[int, int, int]
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        def draw(key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
            return lecun_normal(key, (shape[0], shape[1] * shape[2]), dtype).reshape(shape)

        kernel_init = nn.with_logical_partitioning(draw, (axes.EMBED, None, axes.MLP))
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, (None, axes.MLP))
        kernel = self.param("kernel", kernel_init, self.shape, self.param_dtype)
        bias = self.param("bias", bias_init, self.shape[1:], self.param_dtype)
        return jnp.asarray(kernel, self.dtype), jnp.asarray(bias, self.dtype)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to `conditioning`, and MLP, each with a residual connection."""

    num_heads: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, "B T D"], conditioning: Float[Array, "B Q E"]) -> Float[Array, "B T D"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        heads = {"num_heads": self.num_heads, "head_dim": x.shape[-1] // self.num_heads, "out_bias": True}

        def norm(name: str) -> LayerNorm:
            return LayerNorm(eps=1e-5, name=name, **dtypes)

        x = x + Attention(name="self_attention", **heads, **dtypes)(norm("norm1")(x))[0]
        x = x + Attention(name="cross_attention", **heads, **dtypes)(norm("norm2")(x), conditioning)[0]
        return x + GatedGeluMlp(name="mlp", **dtypes)(norm("norm3")(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of an image, between two projections, with a residual connection."""

    num_heads: int
    num_layers: int
    groups: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(
        self, x: Float[Array, "B height width C"], conditioning: Float[Array, "B Q E"]
    ) -> Float[Array, "B height width C"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, height, width, channels = x.shape
        hidden = GroupNorm(self.groups, 1e-6, name="norm", **dtypes)(x)
        hidden = pointwise(channels, name="project_in", **dtypes)(hidden).reshape(batch, height * width, channels)
        for index in range(self.num_layers):
            hidden = TransformerBlock(self.num_heads, name=f"blocks_{index}", **dtypes)(hidden, conditioning)
        # Zero, so that an initial transformer is the identity (CompVis latent-diffusion, `zero_module`).
        project_out = pointwise(channels, name="project_out", kernel_init=nn.initializers.zeros, **dtypes)
        x = x + project_out(hidden).reshape(batch, height, width, channels)
        return logical_constraint(x, IMAGE_AXES)
