"""The autoencoder of Stable Diffusion: pictures in [-1, 1] to a Gaussian over latents, and latents back to pictures."""

import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from emu_jax.diffusion.config import VAEConfig
from emu_jax.diffusion.resnet import PICTURE, Downsample, ResnetBlock, Upsample, pointwise
from emu_jax.diffusion.schedule import standard_noise
from emu_jax.layers.attention import attend
from emu_jax.layers.conv import Conv
from emu_jax.layers.group_norm import GroupNorm
from emu_jax.layers.linear import DenseGeneral
from emu_jax.layers.stack import Remat, remat_layer
from emu_jax.sharding import axes
from emu_jax.sharding.specs import logical_constraint
from emu_jax.typing import Array, Float

EPS = 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Posterior:
    """A Gaussian over the latents of a picture, one mean and one log-variance each; not yet scaled for the U-Net."""

    mean: Float[Array, "B height width C"]
    log_variance: Float[Array, "B height width C"]

    def __iter__(self) -> Iterator[Float[Array, "B height width C"]]:
        """As a pair: `mean, log_variance = decoder.encode(images)`."""
        return iter((self.mean, self.log_variance))

    def sample(self, rng: jax.Array) -> Float[Array, "B height width C"]:
        """Latents drawn from it."""
        return self.mean + jnp.exp(0.5 * self.log_variance) * standard_noise(rng, self.mean.shape)


class VAE(nn.Module):
    """Encoder and decoder; `encode` and `decode` are the methods to apply."""

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

    def encode(self, images: Float[Array, "B height width C"]) -> Posterior:
        """The posterior of images in [-1, 1], float32; the log-variance is held between -30 and 20."""
        moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Posterior(mean=mean, log_variance=jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, latents: Float[Array, "B height width C"]) -> Float[Array, "B height*f width*f C_out"]:
        """Images, about in [-1, 1], of unscaled latents, float32."""
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)

    def __call__(self, images: Float[Array, "B height width C"]) -> Float[Array, "B height width C"]:
        """Images through the posterior's mean and back; makes the parameters of both halves."""
        return self.decode(self.encode(images).mean)


class Encoder(nn.Module):
    """Residual blocks at each level, halving between them; gives mean and log-variance, one after the other."""

    config: VAEConfig
    remat: Remat = Remat.NONE
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B height width C"]) -> Float[Array, "B h w 2*C_latent"]:
        config = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block = remat_layer(ResnetBlock, remat=self.remat)
        channels = config.block_out_channels
        x = logical_constraint(Conv(channels[0], name="conv_in", **dtypes)(x), PICTURE)
        for level, features in enumerate(channels):
            name = f"down_blocks_{level}"
            for layer in range(config.layers_per_block):
                x = block(features, config.norm_num_groups, EPS, name=f"{name}_resnets_{layer}", **dtypes)(x)
            if level < len(channels) - 1:
                # Padding below and right only, unlike the U-Net's.
                x = Downsample(features, padding=((0, 1), (0, 1)), name=f"{name}_downsample", **dtypes)(x)
        x = MidBlock(config, remat=self.remat, name="mid_block", **dtypes)(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, EPS, name="norm_out", **dtypes)(x))
        return Conv(2 * config.latent_channels, name="conv_out", **dtypes)(x)


class Decoder(nn.Module):
    """The encoder backwards, with one residual block more at each level."""

    config: VAEConfig
    remat: Remat = Remat.NONE
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C_latent"]) -> Float[Array, "B height width C_out"]:
        config = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block = remat_layer(ResnetBlock, remat=self.remat)
        channels = config.block_out_channels[::-1]
        x = logical_constraint(Conv(channels[0], name="conv_in", **dtypes)(x), PICTURE)
        x = MidBlock(config, remat=self.remat, name="mid_block", **dtypes)(x)
        for step, features in enumerate(channels):
            name = f"up_blocks_{step}"
            for layer in range(config.layers_per_block + 1):
                x = block(features, config.norm_num_groups, EPS, name=f"{name}_resnets_{layer}", **dtypes)(x)
            if step < len(channels) - 1:
                x = Upsample(features, name=f"{name}_upsample", **dtypes)(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, EPS, name="norm_out", **dtypes)(x))
        return logical_constraint(Conv(config.out_channels, name="conv_out", **dtypes)(x), PICTURE)


class MidBlock(nn.Module):
    """Residual block, self-attention, residual block, at the smallest size."""

    config: VAEConfig
    remat: Remat = Remat.NONE
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        groups, features = self.config.norm_num_groups, x.shape[-1]
        block = remat_layer(ResnetBlock, remat=self.remat)
        x = block(features, groups, EPS, name="resnets_0", **dtypes)(x)
        if self.config.mid_block_add_attention:
            x = PlaceAttention(groups, name="attentions_0", **dtypes)(x)
        return block(features, groups, EPS, name="resnets_1", **dtypes)(x)


class PlaceAttention(nn.Module):
    """Self-attention over the places of a picture, one head as wide as the picture's channels, added to the input."""

    groups: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        dtypes = {"use_bias": True, "dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, height, width, channels = x.shape
        norm = GroupNorm(self.groups, EPS, name="norm", dtype=self.dtype, param_dtype=self.param_dtype)
        places = norm(x).reshape(batch, height * width, channels)
        query, key, value = (
            DenseGeneral((1, channels), (axes.EMBED,), (axes.HEADS, axes.KV), name=name, **dtypes)(places)
            for name in ("query", "key", "value")
        )
        out = attend(query, key, value, scale=channels**-0.5)
        out = DenseGeneral((channels,), (axes.HEADS, axes.KV), (axes.EMBED,), name="out", **dtypes)(out)
        return logical_constraint(x + out.reshape(x.shape), PICTURE)
