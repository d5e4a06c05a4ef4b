"""`python -m emu_jax evaluate`: a tiny untrained Emu scored whole, on the console, as JSON and as a page."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.checkpoints.model_directory import save_model
from emu_jax.cli import evaluate
from emu_jax.convert.visual_decoder import save_visual_decoder
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.demo.world.corpus import corpus
from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.diffusion.decoder import VisualDecoder, unet_inputs, vae_inputs
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.diffusion.unet import UNet
from emu_jax.diffusion.vae import VAE
from emu_jax.errors import UserError
from emu_jax.evaluation.catalog import TASK_NAMES
from emu_jax.models.emu import Emu
from emu_jax.models.presets import emu_tiny
from emu_jax.sharding.specs import unbox

UNET = UNetConfig(
    sample_size=8,
    block_out_channels=(32,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    layers_per_block=1,
    cross_attention_dim=128,
    attention_head_dim=2,
    norm_num_groups=8,
)
AUTOENCODER = VAEConfig(block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=8)


def some_params(module, *inputs):
    """Small random values in every parameter, without compiling an initializer."""
    rng = np.random.default_rng(0)
    shapes = unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])
    return jax.tree.map(lambda s: jnp.asarray(0.1 * rng.standard_normal(s.shape), s.dtype), shapes)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model directory with a visual decoder of 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(corpus(np.random.default_rng(0), 300), folder / "small.model", vocab_size=400)
    config = emu_tiny(vocab_size=tokenizer.vocab_size)
    model = Emu(config, image_token_id=tokenizer.image_token_id)
    params = some_params(model, jnp.zeros((1, 8), jnp.int32), jnp.zeros((1, 1, 32, 32, 3)))
    save_model(folder / "model", config, params, tokenizer=folder / "small.model")
    unet, vae = UNet(UNET), VAE(AUTOENCODER)
    painted = {"unet": some_params(unet, *unet_inputs(UNET)), "vae": some_params(vae, *vae_inputs(AUTOENCODER))}
    decoder = VisualDecoder(unet, vae, schedule=NoiseSchedule(), params=painted)
    save_visual_decoder(decoder, folder / "model" / "visual_decoder")
    return folder / "model"


def test_scores_are_printed_and_written(directory, tmp_path, capsys):
    words = ["--checkpoint", str(directory), "--task", "synthetic", "--num-scenes", "4", "--num-frames", "2"]
    evaluate.main([*words, "--steps", "2", "--output", str(tmp_path)])
    metrics = json.loads((tmp_path / "synthetic/scores.json").read_text(), parse_constant=pytest.fail)
    assert metrics["caption_exact"] == metrics["untrained"]["caption_exact"] == 0
    assert metrics["num_scenes"]["caption_exact"] == 4
    assert metrics["num_scenes"]["text_to_image_color_and_shape"] == 2
    assert metrics["untrained"]["num_scenes"]["text_to_image_color_and_shape"] == 1
    assert metrics["visual_embedding_variance"] != metrics["untrained"]["visual_embedding_variance"]
    assert metrics["settings"]["num_frames"] == 2
    assert "text_to_image_color_and_shape" in capsys.readouterr().out
    assert "Captions of one object" in (tmp_path / "synthetic/report.html").read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--checkpoint", "nowhere", "--task", "synthetic", "--output", "out"], "There is no model at nowhere"),
        (
            ["--checkpoint", "nowhere", "--task", "synthetic", "--output", "out", "--num-scenes", "0"],
            "num_scenes must be at least 1",
        ),
        (["--checkpoint", "nowhere", "--task", "chess", "--output", "out", "--data", "."], "There is no task 'chess'"),
        (["--checkpoint", "nowhere", "--task", "vqav2", "--output", "out"], "--data is required"),
        (["--task", "vqav2", "--data", ".", "--output", "out"], "--checkpoint is required"),
        (["--predictions", "p", "--task", "a,b", "--output", "out"], "--predictions are of one task"),
        (["--predictions", "p", "--checkpoint", "x", "--task", "vqav2", "--output", "out"], "leave out --checkpoint"),
        ([], "--task is required"),
    ],
)
def test_mistakes_are_one_line(words, line):
    with pytest.raises(UserError, match=line) as caught:
        evaluate.main(words)
    assert "\n" not in str(caught.value)


def test_every_task_is_listed_with_its_files(capsys):
    evaluate.main(["--list"])
    listed = capsys.readouterr().out
    for name in (*TASK_NAMES, "synthetic"):
        assert f"{name}: " in listed
    assert "ROOT/vqav2/v2_mscoco_val2014_annotations.json" in listed
