"""From a config to what one call of the loop wants, for each stage: the stage, its data, what is left at the end."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from emu_jax.config import from_config_dict
from emu_jax.convert.visual_decoder import load_visual_decoder, save_visual_decoder
from emu_jax.data.loader.decoder_examples import WeightedSet
from emu_jax.data.loader.decoder_images import ImageDataConfig, make_image_loader
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.diffusion.decoder import VisualDecoder
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.errors import UserError
from emu_jax.training.config import TrainConfig
from emu_jax.training.decoder_sources import ComputedExamples, ComputedSource, StoredSource, on_host, start_with
from emu_jax.training.loop import DataFactory, Start, TrainResult
from emu_jax.training.prefetch import Data
from emu_jax.training.run import (
    EMU_STAGES,
    PRETRAIN,
    data_factory,
    make_stage,
    on_chip,
    read_run_config,
    with_vocabulary,
)
from emu_jax.training.stage import Stage
from emu_jax.training.stages.vae import VAEStage, VAETrainingConfig, to_unit_range
from emu_jax.training.stages.visual_decoder import VisualDecoderStage, VisualDecoderTrainingConfig

VISUAL_DECODER = "visual_decoder"


@dataclasses.dataclass(frozen=True)
class Job:
    """What `train` is called with.

    Attributes:
      config: the whole run, as it is kept beside the checkpoints.
      tokenizer: path of the SentencePiece model to keep in the workdir; None for a stage that reads no text.
      start: what the run begins with where that is not new parameters; see `training.loop.train`.
      finish: called with the workdir and the result once all steps are done; leaves what the next stage reads.
    """

    config: Any
    train: TrainConfig
    stage: Stage
    data: DataFactory
    tokenizer: Path | None = None
    start: Start | None = None
    finish: Callable[[Path, TrainResult], None] = lambda workdir, result: None


@dataclasses.dataclass(frozen=True)
class VAERun:
    """Training an autoencoder; WORKDIR/visual_decoder is then a diffusers folder with it and a new U-Net.

    Its `scaling_factor` is measured at the end, on one batch: latents times it have unit deviation, as Rombach et al.
    (2022) did for Stable Diffusion's 0.18215.

    Attributes:
      unet: sizes of the U-Net that will paint its latents.
      schedule: the noise that it will be trained with, and what it predicts.
    """

    stage: str
    vae: VAEConfig
    unet: UNetConfig
    pictures: ImageDataConfig
    batch_size: int
    train: TrainConfig
    schedule: NoiseSchedule = dataclasses.field(default_factory=NoiseSchedule)
    training: VAETrainingConfig = dataclasses.field(default_factory=VAETrainingConfig)


@dataclasses.dataclass(frozen=True)
class VisualDecoderRun:
    """Training a U-Net; WORKDIR/visual_decoder is then the folder with it. Either `examples` or `computed` is given.

    Attributes:
      decoder: the diffusers folder with the U-Net to begin with (Stable Diffusion v1.5's, or what the stage `vae`
        left), the autoencoder and the schedule. Where the U-Net takes embeddings of another width than Emu's, its
        keys' and values' projections are new, and listed.
      examples: folder that `prepare-decoder-data` wrote, or several with weights.
      computed: what to compute conditions and latents from instead.
    """

    stage: str
    decoder: str
    batch_size: int
    train: TrainConfig
    examples: str | tuple[WeightedSet, ...] = ()
    computed: ComputedExamples | None = None
    training: VisualDecoderTrainingConfig = dataclasses.field(default_factory=VisualDecoderTrainingConfig)

    def __post_init__(self) -> None:
        if bool(self.examples) == (self.computed is not None):
            raise UserError("Give the stage visual_decoder either stored `examples` or what is to be `computed`.")


def read_job(config: Mapping[str, Any] | Any) -> Job:
    """The job of a ConfigDict whose `stage` names one of `JOBS`.

    Raises:
      UserError: unknown, missing or mistyped fields, or parts that do not fit together.
    """
    stage = config.get("stage", PRETRAIN)
    if stage not in JOBS:
        raise UserError(f"config.stage must be one of {', '.join(JOBS)}, not {stage!r}.")
    return JOBS[stage](config)


def _emu(config: Any) -> Job:
    run = read_run_config(config)
    tokenizer = Tokenizer.load(run.tokenizer, instruct=run.instruct)
    run = with_vocabulary(run, vocab_size=tokenizer.vocab_size)
    run = on_chip(run, device_kind=jax.devices()[0].device_kind)
    return Job(
        config=run,
        train=run.train,
        stage=make_stage(run, image_token_id=tokenizer.image_token_id),
        data=data_factory(run, tokenizer=tokenizer),
        tokenizer=Path(run.tokenizer),
    )


def _vae(config: Any) -> Job:
    run = from_config_dict(VAERun, config)
    if run.vae.sample_size != run.pictures.image_size:
        raise UserError(
            f"pictures.image_size is {run.pictures.image_size}, and the autoencoder takes {run.vae.sample_size}."
        )
    stage = VAEStage(model=run.vae, batch_size=run.batch_size, config=run.training)

    def load(**where: int) -> Data:
        return make_image_loader(run.pictures, batch_size=run.batch_size, seed=run.train.seed, **where)

    def finish(workdir: Path, result: TrainResult) -> None:
        vae = _trained(result, "vae")
        make = functools.partial(VisualDecoder.create, run.unet, schedule=run.schedule, seed=run.train.seed)
        decoder = make(run.vae, trained={"vae": vae})
        posterior = decoder.encode(to_unit_range(next(load())["images"]))
        scaled = dataclasses.replace(run.vae, scaling_factor=1 / float(jnp.std(posterior.mean)))
        _save(make(scaled, trained=decoder.params), workdir)

    return Job(config=run, train=run.train, stage=stage, data=_from_start_or_state(load), finish=finish)


def _visual_decoder(config: Any) -> Job:
    run = from_config_dict(VisualDecoderRun, config)
    source: StoredSource | ComputedSource
    if run.computed is None:
        source = StoredSource.open(run.examples)
    else:
        source = ComputedSource.open(run.computed, mesh=run.train.mesh)
    width, seed = source.unconditional.shape[-1], run.train.seed
    decoder = on_host(load_visual_decoder(run.decoder, cross_attention_dim=width, seed=seed))
    stage = VisualDecoderStage(
        model=decoder.unet.config,
        batch_size=run.batch_size,
        unconditional=source.unconditional,
        scaling_factor=decoder.vae.config.scaling_factor,
        schedule=decoder.schedule,
        config=run.training,
        frozen=source.frozen(decoder),
    )

    def finish(workdir: Path, result: TrainResult) -> None:
        params = decoder.params | {"unet": _trained(result, "unet")}
        _save(dataclasses.replace(decoder, params=params), workdir)

    return Job(
        config=run,
        train=run.train,
        stage=stage,
        data=_from_start_or_state(source.loader(decoder, batch_size=run.batch_size, seed=seed)),
        start=start_with(decoder, source, folder=run.decoder),
        finish=finish,
    )


JOBS: dict[str, Callable[[Any], Job]] = {
    **dict.fromkeys(EMU_STAGES, _emu),
    "vae": _vae,
    VISUAL_DECODER: _visual_decoder,
}


def _from_start_or_state(load: Callable[..., Data]) -> DataFactory:
    """A factory of data that goes on with as many processes as it was saved by."""

    def make(states: list[Any]) -> Data:
        index, count = jax.process_index(), jax.process_count()
        data = load(process_index=index, process_count=count)
        if len(states) == count:
            data.set_state(states[index])
        elif states:
            raise UserError(f"This run was saved by {len(states)} processes; go on with as many, not {count}.")
        return data

    return make


def _trained(result: TrainResult, part: str) -> Any:
    """What a run made of a part, in the host's memory: its moving average where one was kept."""
    return jax.device_get((result.params if result.ema is None else result.ema)[part])


def _save(decoder: VisualDecoder, workdir: Path) -> None:
    """WORKDIR/visual_decoder."""
    if jax.process_index() == 0:
        save_visual_decoder(decoder, workdir / VISUAL_DECODER)
