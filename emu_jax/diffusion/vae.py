"""The autoencoder of Stable Diffusion: from images in [-1, 1] to a Gaussian over latents, from latents to images."""

import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from emu_jax.diffusion.config import VAEConfig
from emu_jax.diffusion.resnet import IMAGE_AXES, Downsample, ResnetBlock, Upsample, pointwise
from emu_jax.diffusion.schedule import standard_noise
from emu_jax.layers.attention import attend
from emu_jax.layers.conv import Conv
from emu_jax.layers.group_norm import GroupNorm
from emu_jax.layers.linear import DenseGeneral
from emu_jax.layers.stack import Remat, remat_layer
from emu_jax.sharding import axes
from emu_jax.sharding.specs import logical_constraint
from emu_jax.typing import Array, Float, typechecked

EPS = 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over the latents of images, not scaled for the U-Net.

    Attributes:
      mean, log_variance: `[B, height, width, C]`, in latent pixels.
    """

    mean: Array
    log_variance: Array

    def __iter__(self) -> Iterator[Array]:
        """Yield the mean and the log-variance: `mean, log_variance = decoder.encode(images)`."""
        return iter((self.mean, self.log_variance))

    def sample(self, rng: jax.Array) -> Array:
        """Draw latents."""
        return self.mean + jnp.exp(0.5 * self.log_variance) * standard_noise(rng, self.mean.shape)


class VAE(nn.Module):
    """Encoder and decoder. Apply it with `method="encode"` or `method="decode"`."""

    config: VAEConfig
    remat: Remat = Remat.NONE
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.encoder = Encoder(self.config, remat=self.remat, **dtypes)
        self.decoder = Decoder(self.config, remat=self.remat, **dtypes)
        self.quant_conv = pointwise(2 * self.config.latent_channels, name=None, **dtypes)
        self.post_quant_conv = pointwise(self.config.latent_channels, name=None, **dtypes)

    @typechecked
    def encode(self, images: Float[Array, "B height width C"]) -> Posterior:
        """Return the posterior of images in [-1, 1], float32. The log-variance is clipped to [-30, 20]."""
        moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Posterior(mean=mean, log_variance=jnp.clip(log_variance, -30.0, 20.0))

    @typechecked
    def decode(
        self, latents: Float[Array, "B height width C"]
    ) -> Float[Array, "B height*{self.config.factor} width*{self.config.factor} C_out"]:
        """Return images, approximately in [-1, 1], of unscaled latents, float32."""
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)

    @typechecked
    def __call__(self, images: Float[Array, "B height width C"]) -> Float[Array, "B height width C"]:
        """Encode images and decode the posterior's mean; used to initialize all parameters."""
        return self.decode(self.encode(images).mean)


class Encoder(nn.Module):
    """Residual blocks at each level with downsampling between levels. Returns mean and log-variance as channels."""

    config: VAEConfig
    remat: Remat = Remat.NONE
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(
        self, x: Float[Array, "B height width C"]
    ) -> Float[Array, "B height//{self.config.factor} width//{self.config.factor} 2*{self.config.latent_channels}"]:
        config = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block = remat_layer(ResnetBlock, remat=self.remat)
        channels = config.block_out_channels
        x = logical_constraint(Conv(channels[0], name="conv_in", **dtypes)(x), IMAGE_AXES)
        for level, features in enumerate(channels):
            name = f"down_blocks_{level}"
            for layer in range(config.layers_per_block):
                x = block(features, config.norm_num_groups, EPS, name=f"{name}_resnets_{layer}", **dtypes)(x)
            if level < len(channels) - 1:
                # Unlike the U-Net, padding only below and to the right.
                x = Downsample(features, padding=((0, 1), (0, 1)), name=f"{name}_downsample", **dtypes)(x)
        x = MidBlock(config, remat=self.remat, name="mid_block", **dtypes)(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, EPS, name="norm_out", **dtypes)(x))
        return Conv(2 * config.latent_channels, name="conv_out", **dtypes)(x)


class Decoder(nn.Module):
    """The levels of the encoder in reverse order, with one more residual block at each."""

    config: VAEConfig
    remat: Remat = Remat.NONE
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(
        self, x: Float[Array, "B height width C"]
    ) -> Float[Array, "B height*{self.config.factor} width*{self.config.factor} C_out"]:
        config = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block = remat_layer(ResnetBlock, remat=self.remat)
        channels = config.block_out_channels[::-1]
        x = logical_constraint(Conv(channels[0], name="conv_in", **dtypes)(x), IMAGE_AXES)
        x = MidBlock(config, remat=self.remat, name="mid_block", **dtypes)(x)
        for step, features in enumerate(channels):
            name = f"up_blocks_{step}"
            for layer in range(config.layers_per_block + 1):
                x = block(features, config.norm_num_groups, EPS, name=f"{name}_resnets_{layer}", **dtypes)(x)
            if step < len(channels) - 1:
                x = Upsample(features, name=f"{name}_upsample", **dtypes)(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, EPS, name="norm_out", **dtypes)(x))
        return logical_constraint(Conv(config.out_channels, name="conv_out", **dtypes)(x), IMAGE_AXES)


class MidBlock(nn.Module):
    """Residual block, self-attention, residual block, at the lowest resolution."""

    config: VAEConfig
    remat: Remat = Remat.NONE
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, "B height width C"]) -> Float[Array, "B height width C"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        groups, features = self.config.norm_num_groups, x.shape[-1]
        block = remat_layer(ResnetBlock, remat=self.remat)
        x = block(features, groups, EPS, name="resnets_0", **dtypes)(x)
        if self.config.mid_block_add_attention:
            x = PixelAttention(groups, name="attentions_0", **dtypes)(x)
        return block(features, groups, EPS, name="resnets_1", **dtypes)(x)


class PixelAttention(nn.Module):
    """Self-attention over pixels with one head of all channels, and a residual connection."""

    groups: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, "B height width C"]) -> Float[Array, "B height width C"]:
        dtypes = {"use_bias": True, "dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, height, width, channels = x.shape
        norm = GroupNorm(self.groups, EPS, name="norm", dtype=self.dtype, param_dtype=self.param_dtype)
        pixels = norm(x).reshape(batch, height * width, channels)
        query, key, value = (
            DenseGeneral((1, channels), (axes.EMBED,), (axes.HEADS, axes.KV), name=name, **dtypes)(pixels)
            for name in ("query", "key", "value")
        )
        out = attend(query, key, value, scale=channels**-0.5)
        out = DenseGeneral((channels,), (axes.HEADS, axes.KV), (axes.EMBED,), name="out", **dtypes)(out)
        return logical_constraint(x + out.reshape(x.shape), IMAGE_AXES)
