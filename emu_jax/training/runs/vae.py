"""Training runs of an autoencoder: the stage `vae`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from emu_jax.bounds import Checked, Count
from emu_jax.config import from_config_dict
from emu_jax.convert.visual_decoder import save_visual_decoder
from emu_jax.data.loader.divided import DividedBatches
from emu_jax.data.loader.vae_images import ImageDataConfig, make_image_loader
from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.diffusion.decoder import VisualDecoder
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.errors import UserError
from emu_jax.training.config import TrainConfig
from emu_jax.training.evaluation import EvaluationConfig, HeldOutSet, held_out_losses
from emu_jax.training.loop import TrainResult
from emu_jax.training.prefetch import Data
from emu_jax.training.runs.run import Run, data_factory, trained_part
from emu_jax.training.runs.visual_decoder import VISUAL_DECODER
from emu_jax.training.stages.vae import VAEStage, VAETrainingConfig, to_unit_range

VAE = "vae"


@dataclasses.dataclass(frozen=True)
class VAERunConfig(Checked):
    """Complete configuration of a run. It leaves the autoencoder and a new U-Net in WORKDIR/visual_decoder.

    The `scaling_factor` is measured at the end on one batch, so that scaled latents have a standard deviation of 1.
    Rombach et al. (2022) chose the 0.18215 of Stable Diffusion in the same way.

    Attributes:
      stage: `vae`.
      vae: sizes of the autoencoder.
      unet: sizes of the new U-Net.
      images: data sets and image size.
      batch_size: rows of a global batch.
      train: length, optimizer, mesh, checkpoints.
      schedule: noise schedule of the new U-Net, and the quantity that it predicts.
      training: loss weight and dtype.
      evaluation: held-out sets of images.
    """

    stage: str
    vae: VAEConfig
    unet: UNetConfig
    images: ImageDataConfig
    batch_size: Count
    train: TrainConfig
    schedule: NoiseSchedule = dataclasses.field(default_factory=NoiseSchedule)
    training: VAETrainingConfig = dataclasses.field(default_factory=VAETrainingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.evaluation.check_no_tasks(self.stage)


def open_vae_run(config: Mapping[str, Any] | Any) -> Run:
    """Return the run of a config.

    Raises:
      UserError: invalid fields, or an image size that does not fit the autoencoder.
    """
    run = from_config_dict(VAERunConfig, config)
    if run.vae.sample_size != run.images.image_size:
        raise UserError(
            f"images.image_size is {run.images.image_size}, but vae.sample_size is {run.vae.sample_size}: set both to "
            "the same number."
        )

    def load(**process: int) -> DividedBatches:
        return make_image_loader(run.images, batch_size=run.batch_size, seed=run.train.seed, **process)

    def decoder(vae: VAEConfig, params: dict[str, Any]) -> VisualDecoder:
        return VisualDecoder.create(run.unet, vae, schedule=run.schedule, seed=run.train.seed, trained=params)

    def finish(workdir: Path, result: TrainResult) -> None:
        unscaled = decoder(run.vae, {"vae": trained_part(result, "vae")})
        posterior = unscaled.encode(to_unit_range(next(load())["images"]))
        scaled = dataclasses.replace(run.vae, scaling_factor=1 / float(jnp.std(posterior.mean)))
        if jax.process_index() == 0:
            save_visual_decoder(decoder(scaled, unscaled.params), workdir / VISUAL_DECODER)

    stage = VAEStage(model=run.vae, batch_size=run.batch_size, config=run.training)

    def held_out(one: HeldOutSet) -> Data:
        images = dataclasses.replace(run.images, sets=(one.path,))
        index, count = jax.process_index(), jax.process_count()
        return make_image_loader(images, batch_size=run.batch_size, seed=0, process_index=index, process_count=count)

    evaluations = held_out_losses(run.evaluation, stage, held_out, mesh=run.train.mesh)
    data = data_factory(load)
    return Run(config=run, train=run.train, stage=stage, data=data, evaluations=evaluations, finish=finish)
