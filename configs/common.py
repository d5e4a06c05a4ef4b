"""Building blocks of the configs: a ConfigDict with every field of a run, so that each can be set by a flag."""

import dataclasses
import types
import typing

from ml_collections import ConfigDict, config_dict

from emu_jax.config import from_config_dict, to_dict
from emu_jax.data.batch import BatchConfig
from emu_jax.data.loader.config import DataConfig, SetConfig
from emu_jax.data.loader.vae_images import ImageDataConfig
from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.errors import UserError
from emu_jax.layers.saved import ATTENTION_OUT, CONTEXT, NAMES
from emu_jax.models.presets import PRESETS
from emu_jax.training.chips import SPARSE_CORE_COLLECTIVES, ChipConfig
from emu_jax.training.config import TrainConfig
from emu_jax.training.evaluation import HeldOutSet
from emu_jax.training.runs.emu import CAPTION_WARMUP, INSTRUCT, EmuRunConfig
from emu_jax.training.runs.vae import VAERunConfig
from emu_jax.training.runs.visual_decoder import VisualDecoderRunConfig
from emu_jax.training.stages.pretrain import LANGUAGE_SIDE

__all__ = [
    "INSTRUCT",
    "LANGUAGE_SIDE",
    "LLAMA_VOCAB",
    "autoencoder",
    "base",
    "chips",
    "from_scratch",
    "held_out",
    "scratch",
    "sets",
    "visual_decoder",
]

LLAMA_VOCAB = 32004  # the 32000 tokens of LLaMA and four special tokens


def base(preset: str, *, steps: int, batch_size: int, length: int, max_images: int) -> ConfigDict:
    """Return a run of a model preset with all other fields at their defaults; set `data.sets` and `tokenizer`.

    Args:
      preset: name in `models/presets.py`.
      steps: total number of steps.
      batch_size: rows of a global batch.
      length: tokens per row.
      max_images: image slots per row.
    """
    model = PRESETS[preset](vocab_size=0)  # 0: take it from the tokenizer
    batch = BatchConfig(batch_size=batch_size, length=length, max_images=max_images, image_size=model.vision.image_size)
    data = DataConfig(sets=(), batch=batch, num_image_tokens=model.causal_former.num_image_tokens)
    return fields_of(EmuRunConfig(model=model, tokenizer="", data=data, train=TrainConfig(steps=steps)))


def scratch(
    config: ConfigDict, *, vision: dict, causal_former: dict, decoder: dict, tokens: float, phase: str
) -> ConfigDict:
    """Turn the run `config` into one of the scaling study.

    Args:
      config: run that provides everything else, such as the data mixture.
      vision: sizes of the vision encoder that differ.
      causal_former: sizes of the causal former that differ.
      decoder: sizes of the decoder that differ.
      tokens: total number of decoder tokens.
      phase: see `from_scratch`.
    """
    rows = 256
    for part, sizes in (("vision", vision), ("causal_former", causal_former), ("decoder", decoder)):
        config.model[part].update(sizes)
        config.model[part].remat = "dots"
    config.model.decoder.num_kv_heads = config.model.decoder.num_heads
    config.data.batch.batch_size = rows
    config.train.accumulation = 1
    config.samples_per_step = 0
    config.train.steps = round(tokens / (rows * config.data.batch.length))
    optimizer = config.train.optimizer
    optimizer.part_learning_rates = ()
    optimizer.learning_rate = 1e-3 * (768 / config.model.decoder.width)  # 1e-3 at width 768, inverse to the width
    optimizer.b2 = 0.95
    optimizer.warmup_fraction = 0.02
    optimizer.clip_norm = 1.0
    optimizer.schedule = "wsd"  # one run and several cooldowns give all lengths of a study
    return from_scratch(config, phase)


def from_scratch(config: ConfigDict, phase: str) -> ConfigDict:
    """Apply the recipe for a newly initialized causal former: first `captions`, then `both` losses.

    With both losses from the first step, the visual embeddings become constant (`training/collapse.py`). In `both` the
    vision side is frozen. It requires `--config.train.warm_start=WORKDIR/checkpoints/STEP` of the captions phase.
    """
    config.data.predict_boi = True  # learn to start an image; the released Emu never does
    if phase == "captions":
        config.stage = CAPTION_WARMUP
        config.data.image_first = 1.0  # without the regression loss, a caption before its image teaches nothing
    elif phase == "both":
        config.data.image_first = 0.5
        config.pretrain.normalize_targets = True
        config.pretrain.trainable = LANGUAGE_SIDE
    else:
        raise UserError(f"The phases of this config are captions and both, not {phase!r}.")
    return config


def autoencoder(*, vae: dict, unet: dict, sets: tuple[str, ...], batch_size: int, steps: int) -> ConfigDict:
    """Return a run of the stage `vae` on prepared sets; `vae` and `unet` are the sizes that differ from SD v1.5."""
    sizes = VAEConfig(**vae)
    return fields_of(
        VAERunConfig(
            stage="vae",
            vae=sizes,
            unet=UNetConfig(sample_size=sizes.sample_size // sizes.factor, **unet),
            images=ImageDataConfig(sets=sets, image_size=sizes.sample_size),
            batch_size=batch_size,
            train=TrainConfig(steps=steps),
        )
    )


def visual_decoder(
    *, decoder: str, batch_size: int, steps: int, examples: str | tuple[dict, ...] = (), computed: dict | None = None
) -> ConfigDict:
    """Return a run of the stage `visual_decoder`, on stored examples or on examples computed in each step.

    Args:
      decoder: diffusers folder with the initial U-Net.
      batch_size: rows of a global batch.
      steps: total number of steps.
      examples: a folder that `prepare-decoder-data` wrote, or several, each as {"path": ..., "weight": ...}.
      computed: fields of `ComputedExamples`.
    """
    run = {"stage": "visual_decoder", "decoder": decoder, "batch_size": batch_size, "train": {"steps": steps}}
    return fields_of(from_config_dict(VisualDecoderRunConfig, run | {"examples": examples, "computed": computed}))


def chips() -> tuple[ConfigDict, ...]:
    """Return the saved activations and compiler options of the 14B model by TPU generation (experiments/records).

    Activations of the decoder have priority. On v5e those of the vision encoder would fit too, but then all-gathers
    would no longer overlap with matmuls.
    """
    everything = {"decoder": NAMES, "vision": NAMES, "causal_former": NAMES}
    return tuple(
        fields_of(ChipConfig(**one))
        for one in (
            {"name": "v5e", "decoder": NAMES},
            everything | {"name": "v5p", "compiler_options": SPARSE_CORE_COLLECTIVES},
            everything | {"name": "v6e"},
            everything | {"name": "v7x", "compiler_options": SPARSE_CORE_COLLECTIVES},
            {"name": "v4", "decoder": NAMES, "vision": (CONTEXT, ATTENTION_OUT)},
        )
    )


def sets(*chosen: dict) -> tuple[ConfigDict, ...]:
    """Return the value of `config.data.sets`, as in `sets({"path": "data/laion2b", "weight": 2.0})`."""
    return tuple(fields_of(SetConfig(**one)) for one in chosen)


def held_out(*chosen: dict) -> tuple[ConfigDict, ...]:
    """Return the value of `config.evaluation.sets`, as in `held_out({"path": "data/held_out/laion2b"})`."""
    return tuple(fields_of(HeldOutSet(**one)) for one in chosen)


def fields_of(config: typing.Any) -> ConfigDict:
    """Convert a dataclass to a ConfigDict that knows the type of each field, also of fields that are None."""
    fields = ConfigDict()
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            fields[name] = fields_of(value)
        elif value is None:
            options = [option for option in typing.get_args(hint) if option is not types.NoneType]
            option = ConfigDict if dataclasses.is_dataclass(options[0]) else options[0]
            fields[name] = config_dict.placeholder(option if isinstance(option, type) else object)
        elif isinstance(value, tuple):
            fields[name] = tuple(fields_of(item) if dataclasses.is_dataclass(item) else item for item in value)
        else:
            fields[name] = to_dict(value)
    return fields
