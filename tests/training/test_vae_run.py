"""Runs of an autoencoder: held-out losses while it trains, and the folder that it leaves."""

from __future__ import annotations

import pytest

from emu_jax.config import to_dict
from emu_jax.convert.visual_decoder import load_visual_decoder
from emu_jax.data.loader.vae_images import ImageDataConfig
from emu_jax.diffusion.config import CROSS_DOWN, CROSS_UP, UNetConfig, VAEConfig
from emu_jax.training.config import OptimizerConfig, TrainConfig
from emu_jax.training.evaluation import EvaluationConfig, HeldOutSet
from emu_jax.training.log import read_metrics
from emu_jax.training.loop import train
from emu_jax.training.runs.registry import open_run
from emu_jax.training.runs.vae import VAERunConfig
from tests.data.conftest import make_set

UNET = UNetConfig(
    sample_size=4,
    block_out_channels=(8,),
    down_block_types=(CROSS_DOWN,),
    up_block_types=(CROSS_UP,),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=2,
    cross_attention_dim=16,
)
VAE = VAEConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, sample_size=8)


@pytest.mark.e2e
def test_held_out_losses_are_evaluated_in_training(tmp_path):
    pairs, pages = (str(make_set(tmp_path, name, first)) for name, first in (("pairs", 0), ("pages", 300)))
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, schedule="constant")
    config = VAERunConfig(
        "vae", VAE, UNET, ImageDataConfig((pairs,), 8), batch_size=8,
        train=TrainConfig(steps=4, log_every=1, evaluate_every=2, optimizer=optimizer),
        evaluation=EvaluationConfig(sets=(HeldOutSet(pages, name="held_out"),), batches=2),
    )  # fmt: skip
    run = open_run(to_dict(config))
    workdir = tmp_path / "run"
    result = train(run.train, stage=run.stage, data=run.data, workdir=workdir, evaluations=run.evaluations)
    first, last = (record for record in read_metrics(workdir) if "eval/held_out/loss" in record)
    assert (first["step"], last["step"]) == (2, 4)
    assert last["eval/held_out/loss"] < first["eval/held_out/loss"]
    run.finish(workdir, result)
    assert load_visual_decoder(workdir / "visual_decoder").vae.config.scaling_factor != VAE.scaling_factor
