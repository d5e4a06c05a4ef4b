"""Sizes of the U-Net and the autoencoder, with the field names of diffusers' `config.json`."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from emu_jax.bounds import Checked, CountOrZero, Depth, Epsilon, Pixels, Positive, Size
from emu_jax.config import from_config_dict
from emu_jax.errors import UserError

CROSS_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"


@dataclasses.dataclass(frozen=True)
class UNetConfig(Checked):
    """UNet2DConditionModel. The defaults are those of Stable Diffusion v1.5, whose text encoder has width 768."""

    in_channels: Size = 4
    out_channels: Size = 4
    sample_size: Pixels = 64  # latent height and width in its training
    block_out_channels: tuple[Size, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, PLAIN_DOWN)
    up_block_types: tuple[str, ...] = (PLAIN_UP, CROSS_UP, CROSS_UP, CROSS_UP)
    layers_per_block: Depth = 2
    cross_attention_dim: Size = 768
    # The number of heads, for all levels or one for each. diffusers has this wrong name to load v1.5.
    attention_head_dim: Depth | tuple[Depth, ...] = 8
    transformer_layers_per_block: Depth = 1
    use_linear_projection: bool = False
    norm_num_groups: Size = 32
    norm_eps: Epsilon = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: CountOrZero = 0
    center_input_sample: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.block_out_channels)
        heads = self.attention_head_dim if isinstance(self.attention_head_dim, tuple) else (self.attention_head_dim,)
        if not len(self.down_block_types) == len(self.up_block_types) == levels:
            raise UserError(
                f"The U-Net's block_out_channels, down_block_types and up_block_types must have one entry per level, "
                f"not {levels}, {len(self.down_block_types)} and {len(self.up_block_types)}."
            )
        if len(heads) not in (1, levels):
            raise UserError(f"The U-Net's attention_head_dim must have 1 or {levels} entries, not {len(heads)}.")
        for dtypes, allowed in (
            (self.down_block_types, (CROSS_DOWN, PLAIN_DOWN)),
            (self.up_block_types, (CROSS_UP, PLAIN_UP)),
        ):
            unknown = sorted(set(dtypes) - set(allowed))
            if unknown:
                raise UserError(f"The U-Net block type {unknown[0]} is not supported. Use {' or '.join(allowed)}.")
        _check_groups("U-Net", self.block_out_channels, self.norm_num_groups)
        for channels, count in zip(self.block_out_channels, self.num_heads, strict=True):
            if channels % count:
                raise UserError(f"The U-Net's {channels} channels do not divide into {count} attention heads.")

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Attention heads of each level, highest resolution first."""
        heads = self.attention_head_dim
        return heads if isinstance(heads, tuple) else (heads,) * len(self.block_out_channels)

    @property
    def size_multiple(self) -> int:
        """Latent heights and widths that are multiples of this are halved exactly by each level except the last."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "UNetConfig":
        """Read the `config.json` of diffusers.

        Raises:
          UserError: an option that would change the result is not supported.
        """
        config = {key: _one_for_all(key, value) for key, value in config.items()}
        config["attention_head_dim"] = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
        channels = config.get("block_out_channels") or cls.block_out_channels
        if config.get("time_embedding_dim") == 4 * channels[0]:  # the width that it has anyway
            config["time_embedding_dim"] = None
        return _from_diffusers(cls, config, _UNET_FIXED, "U-Net")

    def to_diffusers(self) -> dict[str, Any]:
        """Return the `config.json` of `diffusers.UNet2DConditionModel`."""
        return {"_class_name": "UNet2DConditionModel", **_UNET_FIXED, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class VAEConfig(Checked):
    """AutoencoderKL. The defaults are those of Stable Diffusion v1.5: latents of 1/8 the size and four channels."""

    in_channels: Size = 3
    out_channels: Size = 3
    latent_channels: Size = 4
    sample_size: Pixels = 512
    block_out_channels: tuple[Size, ...] = (128, 256, 512, 512)
    layers_per_block: Depth = 2
    norm_num_groups: Size = 32
    mid_block_add_attention: bool = True
    scaling_factor: Positive = 0.18215  # of latents, for a standard deviation of about one

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_groups("VAE", self.block_out_channels, self.norm_num_groups)

    @property
    def factor(self) -> int:
        """Pixels per latent pixel, in height and width."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "VAEConfig":
        """Read the `config.json` of diffusers.

        Raises:
          UserError: an option that would change the result is not supported.
        """
        config = {key: _one_for_all(key, value) for key, value in config.items()}
        levels = len(config.get("block_out_channels", cls.block_out_channels))
        blocks = {
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        }
        return _from_diffusers(cls, config, _VAE_FIXED | blocks, "VAE")

    def to_diffusers(self) -> dict[str, Any]:
        """Return the `config.json` of `diffusers.AutoencoderKL`."""
        levels = len(self.block_out_channels)
        return {
            "_class_name": "AutoencoderKL",
            **_VAE_FIXED,
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            **dataclasses.asdict(self),
        }


# Options of diffusers with the only values that are supported here.
_UNET_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
_VAE_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}


# Options that diffusers also reads as one value per level, or per dimension of the image.
_PER_LEVEL = (
    "cross_attention_dim", "layers_per_block", "only_cross_attention", "sample_size", "transformer_layers_per_block",
)  # fmt: skip
_ALIASES: dict[str, dict[Any, Any]] = {
    "act_fn": {"swish": "silu"},
    "shift_factor": {0: None},
    "mid_block_only_cross_attention": {False: None},
}


def _one_for_all(key: str, value: Any) -> Any:
    """Return the value of an option in the form of this package: one for all levels, and its usual name."""
    if key in _PER_LEVEL and isinstance(value, list | tuple) and value and all(one == value[0] for one in value):
        return value[0]
    if key in _ALIASES and isinstance(value, str | int | float):
        return _ALIASES[key].get(value, value)
    return value


def _from_diffusers(cls, config: Mapping[str, Any], fixed: Mapping[str, Any], name: str):
    for key, value in fixed.items():
        given = config.get(key, value)
        given = list(given) if isinstance(given, tuple) else given
        if given != value:
            raise UserError(
                f"The {name} in this folder has {key} = {json.dumps(given)}; only {json.dumps(value)} is supported."
            )
    names = {field.name for field in dataclasses.fields(cls)}
    values = {key: value for key, value in config.items() if key in names and value is not None}
    return from_config_dict(cls, values, path=f"The {name}'s config")


def _check_groups(name: str, channels: tuple[int, ...], groups: int) -> None:
    if not channels:
        raise UserError(f"The {name}'s block_out_channels must have an entry per level; it is empty.")
    for count in channels:
        if count % groups:
            raise UserError(f"The {name}'s {count} channels do not divide into norm_num_groups = {groups} groups.")
