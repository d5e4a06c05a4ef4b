"""What the configs share: every field of a run with its default and its type, so that each can be set by a flag."""

import dataclasses
import types
import typing

from ml_collections import ConfigDict, config_dict

from emu_jax.config import from_config_dict, to_dict
from emu_jax.data.batch import BatchConfig
from emu_jax.data.loader.decoder_images import ImageDataConfig
from emu_jax.data.loader.pipeline import DataConfig, SetConfig
from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.errors import UserError
from emu_jax.layers.saved import ATTENTION_OUT, CONTEXT, NAMES
from emu_jax.models.presets import PRESETS
from emu_jax.training.chips import SPARSE_CORE_COLLECTIVES, ChipConfig
from emu_jax.training.config import TrainConfig
from emu_jax.training.jobs import VAERun, VisualDecoderRun
from emu_jax.training.run import CAPTION_WARMUP, INSTRUCT, RunConfig
from emu_jax.training.stages.pretrain import LANGUAGE_SIDE, PretrainConfig

__all__ = [
    "INSTRUCT",
    "LANGUAGE_SIDE",
    "autoencoder",
    "base",
    "chips",
    "from_scratch",
    "paper",
    "scratch",
    "sets",
    "visual_decoder",
]

LLAMA_VOCAB = 32004  # LLaMA's 32000 pieces and four special tokens


def base(preset: str, *, steps: int, batch_size: int, length: int, max_images: int) -> ConfigDict:
    """A pretraining run of a model preset, with every other field at its default; `sets` are still to be named."""
    model = PRESETS[preset](vocab_size=0)  # from the tokenizer
    batch = BatchConfig(batch_size=batch_size, length=length, max_images=max_images, image_size=model.vision.image_size)
    data = DataConfig(sets=(), batch=batch, num_image_tokens=model.causal_former.num_image_tokens)
    return fields_of(
        RunConfig(model=model, tokenizer="", data=data, train=TrainConfig(steps=steps), pretrain=PretrainConfig())
    )


def paper(*, vocab_size: int = LLAMA_VOCAB) -> ConfigDict:
    """Emu's pretraining (Sun et al., ICLR 2024) in packed rows; what the paper does not tell is said so beside it."""
    config = base("emu_14b", steps=10_000, batch_size=512, length=1024, max_images=16)
    config.model.decoder.vocab_size = vocab_size
    config.model.dtype = "bfloat16"  # not published; parameters and moments are float32
    config.model.vision.remat = config.model.decoder.remat = config.model.causal_former.remat = "full"
    config.tokenizer = "data/llama/tokenizer.model"
    # 82M samples in 10k steps: 8,192 a step, which is 512 rows of sixteen pairs. A set's weight is its batch size.
    config.data.sets = sets(
        {"path": "data/laion2b", "weight": 128.0},
        {"path": "data/laion_coco", "weight": 128.0},
        {"path": "data/mmc4", "weight": 64.0, "page_image_first": 0.5},
        {"path": "data/webvid", "weight": 16.0},
        {"path": "data/yt_storyboard", "weight": 16.0},
    )
    config.data.max_images_per_document = 8  # a video's frames; MMC4 pages: the first 5
    config.data.workers = 8
    config.train.optimizer.part_learning_rates = (
        (r"^(vision_encoder|visual_norm)/", 4e-5),
        (r"^causal_former/", 1e-4),
    )
    config.train.optimizer.learning_rate = 3e-5  # LLaMA and, not published, both heads
    config.train.optimizer.b2 = 0.98
    config.train.optimizer.warmup_steps = 0.2
    config.train.optimizer.clip_norm = 5.0  # not published; Emu2's
    # 256 divides no dimension of the vision encoder's attention (1408 wide, 16 heads of 88), which would be whole on
    # every chip, 3.6 GiB with its moments.
    config.train.mesh.data, config.train.mesh.fsdp = -1, 128
    config.chips = chips()
    config.train.checkpoint.every_steps = 500
    config.train.checkpoint.keep_every_steps = 2500
    return config


def scratch(*, vision: dict, causal_former: dict, decoder: dict, tokens: float, phase: str) -> ConfigDict:
    """A run of a scaling study: `tokens` decoder places in rows of 1024, every size but those given as in the paper."""
    config = paper()
    rows = 256
    for part, sizes in (("vision", vision), ("causal_former", causal_former), ("decoder", decoder)):
        config.model[part].update(sizes)
        config.model[part].remat = "dots"
    config.model.decoder.num_kv_heads = config.model.decoder.num_heads
    config.data.batch.batch_size = rows
    config.train.steps = round(tokens / (rows * config.data.batch.length))
    config.train.optimizer.part_learning_rates = ()
    config.train.optimizer.learning_rate = 1e-3 * (768 / config.model.decoder.width)  # 1e-3 at width 768, down with it
    config.train.optimizer.b2 = 0.95
    config.train.optimizer.warmup_steps = 0.02
    config.train.optimizer.clip_norm = 1.0
    config.train.optimizer.schedule = "wsd"  # every length of a study from one run and its cooldowns
    return from_scratch(config, phase)


def from_scratch(config: ConfigDict, phase: str) -> ConfigDict:
    """The recipe that keeps a new causal former alive: `captions` first, then `both` losses, the vision side frozen.

    With both losses at once from the first step the embeddings become constant, and nothing looks wrong. `both` wants
    `--config.train.warm_start=WORKDIR/checkpoints/STEP` of the captions.
    """
    config.data.predict_boi = True  # the release never learns to begin an image; this does
    if phase == "captions":
        config.stage = CAPTION_WARMUP
        config.data.image_first = 1.0  # a caption before its picture teaches nothing yet
    elif phase == "both":
        config.data.image_first = 0.5
        config.pretrain.normalize_targets = True
        config.pretrain.trainable = LANGUAGE_SIDE
    else:
        raise UserError(f"The phases of this config are captions and both, not {phase!r}.")
    return config


def autoencoder(*, vae: dict, unet: dict, sets: tuple[str, ...], batch_size: int, steps: int) -> ConfigDict:
    """A run of the stage `vae` on prepared sets; `vae` and `unet` are the fields that differ from SD v1.5."""
    sizes = VAEConfig(**vae)
    return fields_of(
        VAERun(
            stage="vae",
            vae=sizes,
            unet=UNetConfig(sample_size=sizes.sample_size // sizes.factor, **unet),
            pictures=ImageDataConfig(sets=sets, image_size=sizes.sample_size),
            batch_size=batch_size,
            train=TrainConfig(steps=steps),
        )
    )


def visual_decoder(
    *, decoder: str, batch_size: int, steps: int, examples: str | tuple[dict, ...] = (), computed: dict | None = None
) -> ConfigDict:
    """A run of the stage `visual_decoder`, on what `prepare-decoder-data` wrote or on what it computes itself.

    `examples` is a folder or several, `computed` the fields of `ComputedExamples`; sets are as in
    `{"path": "data/laion_coco", "weight": 7.0}`.
    """
    run = {"stage": "visual_decoder", "decoder": decoder, "batch_size": batch_size, "train": {"steps": steps}}
    return fields_of(from_config_dict(VisualDecoderRun, run | {"examples": examples, "computed": computed}))


def chips() -> tuple[ConfigDict, ...]:
    """What the 14B's layers keep for the backward pass, and what its compiler is told, by experiments/records.

    The decoder's come first. v5e has room for some of the vision encoder's, but then gathers no longer fit beside the
    products that hide them.
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
            kind = ConfigDict if dataclasses.is_dataclass(kinds[0]) else kinds[0]
            fields[name] = config_dict.placeholder(kind if isinstance(kind, type) else object)
        elif isinstance(value, tuple):
            fields[name] = tuple(fields_of(item) if dataclasses.is_dataclass(item) else item for item in value)
        else:
            fields[name] = to_dict(value)
    return fields
