"""The U-Net of Stable Diffusion v1.5: predicts the noise in latents, given the timestep and Emu's embeddings."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype

from emu_jax.diffusion.config import CROSS_DOWN, CROSS_UP, UNetConfig
from emu_jax.diffusion.resnet import IMAGE_AXES, Downsample, ResnetBlock, Upsample
from emu_jax.diffusion.timesteps import TimeEmbedding
from emu_jax.diffusion.transformer import SpatialTransformer
from emu_jax.layers.conv import Conv
from emu_jax.layers.group_norm import GroupNorm
from emu_jax.layers.stack import Remat, remat_layer
from emu_jax.sharding.specs import logical_constraint
from emu_jax.typing import Array, Float, Int, typechecked


class UNet(nn.Module):
    """Down blocks, a middle block, and up blocks that receive the outputs of the down blocks.

    Parameters have diffusers' names with underscores instead of dots before numbers, except inside the blocks.
    """

    config: UNetConfig
    remat: Remat = Remat.NONE
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(
        self,
        latents: Float[Array, "B height width C"],
        timesteps: Int[Array, "B"],
        conditioning: Float[Array, "B Q E"],
    ) -> Float[Array, "B height width C_out"]:
        """Return the predicted noise or velocity, as the model was trained; float32."""
        config = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        channels, heads = config.block_out_channels, config.num_heads
        last = len(channels) - 1
        time = TimeEmbedding(
            channels[0], flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift, name="time_embedding",
            **dtypes,
        )(timesteps)  # fmt: skip
        conditioning = conditioning.astype(self.dtype)
        if config.center_input_sample:
            latents = 2 * latents - 1
        x = logical_constraint(Conv(channels[0], name="conv_in", **dtypes)(latents), IMAGE_AXES)

        skips = [x]
        for level, kind in enumerate(config.down_block_types):
            name = f"down_blocks_{level}"
            for layer in range(config.layers_per_block):
                x = self._resnet(channels[level], f"{name}_resnets_{layer}")(x, time)
                if kind == CROSS_DOWN:
                    x = self._transformer(heads[level], f"{name}_attentions_{layer}")(x, conditioning)
                skips.append(x)
            if level < last:
                x = Downsample(channels[level], name=f"{name}_downsample", **dtypes)(x)
                skips.append(x)

        x = self._resnet(channels[-1], "mid_block_resnets_0")(x, time)
        x = self._transformer(heads[-1], "mid_block_attentions_0")(x, conditioning)
        x = self._resnet(channels[-1], "mid_block_resnets_1")(x, time)

        for step, kind in enumerate(config.up_block_types):
            level, name = last - step, f"up_blocks_{step}"
            for layer in range(config.layers_per_block + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = self._resnet(channels[level], f"{name}_resnets_{layer}")(x, time)
                if kind == CROSS_UP:
                    x = self._transformer(heads[level], f"{name}_attentions_{layer}")(x, conditioning)
            if level > 0:
                x = Upsample(channels[level], name=f"{name}_upsample", **dtypes)(x, skips[-1].shape[1:3])

        x = nn.silu(GroupNorm(config.norm_num_groups, config.norm_eps, name="norm_out", **dtypes)(x))
        x = Conv(config.out_channels, kernel_init=nn.initializers.zeros, name="conv_out", **dtypes)(x)
        return logical_constraint(x.astype(jnp.float32), IMAGE_AXES)

    def _resnet(self, features: int, name: str) -> Any:
        config = self.config
        # Zero, so that an initial block is the identity (CompVis latent-diffusion, `zero_module`).
        return remat_layer(ResnetBlock, remat=self.remat)(
            features, config.norm_num_groups, config.norm_eps, last_init=nn.initializers.zeros,
            dtype=self.dtype, param_dtype=self.param_dtype, name=name,
        )  # fmt: skip

    def _transformer(self, heads: int, name: str) -> Any:
        config = self.config
        return remat_layer(SpatialTransformer, remat=self.remat)(
            heads, config.transformer_layers_per_block, config.norm_num_groups,
            dtype=self.dtype, param_dtype=self.param_dtype, name=name,
        )  # fmt: skip
