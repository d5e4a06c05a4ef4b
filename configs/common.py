"""What the configs share: every field of a run with its default and its type, so that each can be set by a flag."""

import dataclasses
import types
import typing

from ml_collections import ConfigDict, config_dict

from emu_jax.config import to_dict
from emu_jax.data.batch import BatchConfig
from emu_jax.data.pictures import PictureConfig
from emu_jax.data.pipeline import DataConfig, SetConfig
from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.models.presets import PRESETS
from emu_jax.training.config import TrainConfig
from emu_jax.training.jobs import VAERun, VisualDecoderRun
from emu_jax.training.run import RunConfig
from emu_jax.training.stages.pretrain import LANGUAGE_SIDE, PretrainConfig

__all__ = ["LANGUAGE_SIDE", "autoencoder", "base", "sets", "visual_decoder"]


def base(preset: str, *, steps: int, batch_size: int, length: int, max_images: int) -> ConfigDict:
    """A pretraining run of a model preset, with every other field at its default; `sets` are still to be named."""
    model = PRESETS[preset](vocab_size=0)  # from the tokenizer
    batch = BatchConfig(batch_size=batch_size, length=length, max_images=max_images, image_size=model.vision.image_size)
    data = DataConfig(sets=(), batch=batch, num_image_tokens=model.causal_former.num_image_tokens)
    return fields_of(
        RunConfig(model=model, tokenizer="", data=data, train=TrainConfig(steps=steps), pretrain=PretrainConfig())
    )


def autoencoder(*, vae: dict, unet: dict, sets: tuple[str, ...], batch_size: int, steps: int) -> ConfigDict:
    """A run of the stage `vae` on prepared sets; `vae` and `unet` are the fields that differ from SD v1.5."""
    sizes = VAEConfig(**vae)
    return fields_of(
        VAERun(
            stage="vae",
            vae=sizes,
            unet=UNetConfig(sample_size=sizes.sample_size // sizes.factor, **unet),
            pictures=PictureConfig(sets=sets, image_size=sizes.sample_size),
            batch_size=batch_size,
            train=TrainConfig(steps=steps),
        )
    )


def visual_decoder(*, examples: str, decoder: str, batch_size: int, steps: int) -> ConfigDict:
    """A run of the stage `visual_decoder` on what `prepare-decoder-data` wrote."""
    return fields_of(
        VisualDecoderRun(
            stage="visual_decoder",
            examples=examples,
            decoder=decoder,
            batch_size=batch_size,
            train=TrainConfig(steps=steps),
        )
    )


def sets(*chosen: dict) -> tuple[ConfigDict, ...]:
    """The sets of `config.data.sets`, as in `sets({"path": "data/laion", "weight": 2.0})`."""
    return tuple(fields_of(SetConfig(**one)) for one in chosen)


def fields_of(config: typing.Any) -> ConfigDict:
    """A dataclass as a ConfigDict that knows the type of a field even where its value is None."""
    fields = ConfigDict()
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            fields[name] = fields_of(value)
        elif value is None:
            kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
            fields[name] = config_dict.placeholder(kinds[0] if isinstance(kinds[0], type) else object)
        else:
            fields[name] = to_dict(value) if not isinstance(value, tuple) else value
    return fields
