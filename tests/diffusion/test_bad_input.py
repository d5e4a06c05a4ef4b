"""Invalid input to the visual decoder is refused with one clear line, before anything is compiled."""

import dataclasses
import json

import numpy as np
import pytest

from emu_jax.convert.visual_decoder import load_visual_decoder, save_visual_decoder
from emu_jax.diffusion.config import CROSS_DOWN, CROSS_UP, UNetConfig, VAEConfig
from emu_jax.diffusion.decoder import VisualDecoder
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.diffusion.unet import UNet
from emu_jax.diffusion.vae import VAE
from emu_jax.errors import UserError

WIDTH = 6
UNET = UNetConfig(
    block_out_channels=(8, 8),
    down_block_types=(CROSS_DOWN,) * 2,
    up_block_types=(CROSS_UP,) * 2,
    norm_num_groups=4,
    attention_head_dim=2,
    cross_attention_dim=WIDTH,
    sample_size=8,
)
DECODER = VisualDecoder(
    UNet(UNET), VAE(VAEConfig(block_out_channels=(8, 8), norm_num_groups=4)), schedule=NoiseSchedule(), params={}
)
CONDITIONING = np.zeros((2, 3, WIDTH), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be an integer from 1 to 1000, not 0"),
        ({"guidance_scale": -1.0}, "guidance_scale must be a number from 0.0 to 1000.0, not -1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number from 0.0 to 1000.0, not nan"),
        ({"seed": -1}, "seed must be an integer from 0 to 4294967295, not -1"),
        ({"height": 31}, "image height must be a multiple of 2, not 31"),
        ({"width": 0}, "width must be an integer from 1 to 8192, not 0"),
        ({"sampler": "euler"}, "sampler must be one of 'pndm', 'ddim', 'dpm-solver"),
        ({"latents": np.zeros((2, 8, 8, 3))}, "latents must have 4 channels, not 3"),
        ({"latents": np.zeros((3, 8, 8, 4))}, "conditioning has 2 rows for 3 images"),
    ],
)
def test_sample(arguments, message):
    with pytest.raises(UserError, match=message):
        DECODER.sample(CONDITIONING, CONDITIONING, **arguments)


def test_embeddings_of_another_model():
    wrong = np.zeros((2, 3, WIDTH + 1), np.float32)
    with pytest.raises(UserError, match=f"conditioning has width {WIDTH + 1}, but the U-Net expects width {WIDTH}"):
        DECODER.sample(wrong, CONDITIONING)
    with pytest.raises(UserError, match="unconditional has width"):
        DECODER.sample(CONDITIONING, wrong)
    with pytest.raises(UserError, match="requires unconditional embeddings"):
        DECODER.sample(CONDITIONING)
    with pytest.raises(UserError, match="shape of the conditioning"):
        DECODER.sample(CONDITIONING, np.zeros((1, 4, WIDTH)))


def test_a_unet_with_unequal_channels_cannot_sample():
    unet = UNet(dataclasses.replace(UNET, in_channels=9))
    with pytest.raises(UserError, match="9 input and 4 output channels"):
        dataclasses.replace(DECODER, unet=unet).sample(CONDITIONING, CONDITIONING)


def test_other_calls():
    latents = np.zeros((2, 8, 8, 4))
    with pytest.raises(UserError, match="timesteps must be one integer or 2"):
        DECODER.predict_noise(latents, [1, 2, 3], CONDITIONING)
    with pytest.raises(UserError, match="image width must be a multiple of 2, not 15"):
        DECODER.encode(np.zeros((1, 16, 15, 3)))
    with pytest.raises(UserError, match="images must have 4 dimensions"):
        DECODER.encode(np.zeros((16, 16, 3)))
    with pytest.raises(UserError, match="latents must have 4 channels"):
        DECODER.decode(np.zeros((1, 8, 8, 3)))


def test_incomplete_folders(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        load_visual_decoder(tmp_path / "absent")
    with pytest.raises(UserError, match=r"not a diffusers folder: unet/config\.json is missing"):
        load_visual_decoder(tmp_path)
    for part, config in (("unet", UNET.to_diffusers()), ("vae", DECODER.vae.config.to_diffusers())):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        load_visual_decoder(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(NoiseSchedule().to_diffusers()))
    with pytest.raises(UserError, match="has no weights"):
        load_visual_decoder(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="not a complete safetensors file"):
        load_visual_decoder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "sample"}, "prediction_type must be one of 'epsilon', 'v_prediction', not 'sample'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule must be one of"),
        ({"clip_sample": True}, "clip_sample must be False"),
        ({"skip_prk_steps": False}, "skip_prk_steps must be True"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps must be int, not '1000'"),
    ],
)
def test_unsupported_schedules(change, message):
    with pytest.raises(UserError, match=message):
        NoiseSchedule.from_diffusers(NoiseSchedule().to_diffusers() | change)


def test_schedules_are_equal_after_a_round_trip_through_diffusers_json():
    for schedule in (NoiseSchedule(), NoiseSchedule(beta_end=0.02, steps_offset=0, set_alpha_to_one=True)):
        assert NoiseSchedule.from_diffusers(json.loads(json.dumps(schedule.to_diffusers()))) == schedule


def test_saving_never_removes_other_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="is not a diffusers folder"):
        save_visual_decoder(DECODER, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years"
