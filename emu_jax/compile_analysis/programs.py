"""The programs that can be compiled for a TPU pod: the train step of a config, and generation with its model."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from emu_jax.compile_analysis.generation_programs import (
    decode_program,
    image_program,
    prefill_program,
    sampling_program,
)
from emu_jax.compile_analysis.program import GenerationShape, Program, read_emu
from emu_jax.config import from_config_dict
from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.errors import UserError
from emu_jax.models.presets import emu_14b
from emu_jax.training.compilation import compile_train_step
from emu_jax.training.config import TrainConfig
from emu_jax.training.optimizer import make_optimizer
from emu_jax.training.runs.emu import EMU_STAGES, PRETRAIN, for_chip, make_stage
from emu_jax.training.runs.registry import RUNS
from emu_jax.training.runs.vae import VAE, VAERunConfig
from emu_jax.training.runs.visual_decoder import VISUAL_DECODER, VisualDecoderRunConfig
from emu_jax.training.stage import HasStepFlops, Stage
from emu_jax.training.stages.frozen import FrozenModels
from emu_jax.training.stages.vae import VAEStage
from emu_jax.training.stages.visual_decoder import VisualDecoderStage
from emu_jax.training.state import abstract_state


def train_program(config: Any, _shape: GenerationShape) -> Program:
    """Run the step of the command `train`. All positions and image slots of its batch count as used."""
    stage, train = _stage(config, device_kind="any")
    spec = stage.batch_spec()
    tokens = spec["tokens"].size if "tokens" in spec else 0
    images = math.prod(spec["images"].shape[:2]) if "images" in spec else next(iter(spec.values())).shape[0]

    def compile_for(mesh: Mesh) -> jax.stages.Compiled:
        stage, train = _stage(config, device_kind=mesh.devices.flat[0].device_kind)
        optimizer = make_optimizer(train.optimizer, steps=train.steps)
        state = abstract_state(stage, optimizer, config=train.optimizer, mesh=mesh)
        return compile_train_step(train, stage=stage, state=state, mesh=mesh)

    flops = stage.step_flops(tokens=tokens, images=images) if isinstance(stage, HasStepFlops) else None
    return Program(
        name="train",
        mesh=train.mesh,
        compile=compile_for,
        flops=flops,
        tokens=tokens,
        images=images,
        steps=train.steps,
    )


PROGRAMS: dict[str, Callable[[Any, GenerationShape], Program]] = {
    "train": train_program,
    "prefill": prefill_program,
    "decode": decode_program,
    "images": image_program,
    "sampling": sampling_program,
}


def _stage(config: Any, *, device_kind: str) -> tuple[Stage, TrainConfig]:
    """Return the stage of the command `train` from the config only, without reading a tokenizer or data.

    Raises:
      UserError: an unknown stage, or invalid fields.
    """
    name = config.get("stage", PRETRAIN)
    if name in EMU_STAGES:
        run, emu = read_emu(config)
        run = for_chip(run, device_kind=device_kind)
        return make_stage(run, image_token_id=emu.image_token_id), run.train
    if name == VISUAL_DECODER:
        decoder = from_config_dict(VisualDecoderRunConfig, config)
        return _visual_decoder_stage(decoder), decoder.train
    if name == VAE:
        vae = from_config_dict(VAERunConfig, config)
        return VAEStage(model=vae.vae, batch_size=vae.batch_size, config=vae.training), vae.train
    raise UserError(f"config.stage must be one of {', '.join(RUNS)}, not {name!r}.")


def _visual_decoder_stage(run: VisualDecoderRunConfig) -> VisualDecoderStage:
    """Return the stage for Stable Diffusion v1.5's U-Net at Emu's width; Emu and autoencoder are the released ones."""
    emu, vae = dataclasses.replace(emu_14b(), dtype="bfloat16"), VAEConfig()
    queries, width = emu.causal_former.num_image_tokens, emu.decoder.width
    frozen = None
    if run.computed is not None:
        frozen = FrozenModels(
            emu=emu,
            vae=vae,
            image_token_id=emu.decoder.vocab_size - 1,
            condition=run.computed.condition,
            prompt_length=run.computed.prompt_length,
        )
    return VisualDecoderStage(
        model=UNetConfig(cross_attention_dim=width),
        batch_size=run.batch_size,
        unconditional=np.zeros((queries, width), np.float32),
        scaling_factor=vae.scaling_factor,
        config=run.training,
        frozen=frozen,
    )
