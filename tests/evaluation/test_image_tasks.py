"""Tasks that generate images: files, layouts, FID and CLIP scores through tiny networks."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from emu_jax.convert.clip_table import clip_table
from emu_jax.diffusion.clip_vision import ClipVisionConfig
from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.diffusion.decoder import VisualDecoder, unet_inputs, vae_inputs
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.diffusion.unet import UNet
from emu_jax.diffusion.vae import VAE
from emu_jax.errors import UserError
from emu_jax.evaluation.api import evaluate
from emu_jax.evaluation.image_metrics.clip_text import ClipTextConfig, clip_text_table
from emu_jax.evaluation.image_metrics.fid import read_statistics
from emu_jax.evaluation.image_metrics.inception_table import inception_table, load_inception
from emu_jax.evaluation.image_metrics.networks import ImageNetworks
from emu_jax.evaluation.image_metrics.resize import Resize, resize_for_inception
from emu_jax.evaluation.task import ScoreOptions
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.sharding.specs import unbox
from tests.evaluation.layouts import WORDS, write_layout

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
QUICK = {"steps": 2, "sampler": "ddim"}


def some_params(module, *inputs):
    rng = np.random.default_rng(0)
    shapes = unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])
    return jax.tree.map(lambda s: jnp.asarray(0.1 * rng.standard_normal(s.shape), s.dtype), shapes)


@pytest.fixture(scope="module")
def with_decoder(tiny):
    unet, vae = UNet(UNET), VAE(AUTOENCODER)
    params = {"unet": some_params(unet, *unet_inputs(UNET)), "vae": some_params(vae, *vae_inputs(AUTOENCODER))}
    decoder = VisualDecoder(unet, vae, schedule=NoiseSchedule(), params=params)
    return EmuPipeline(tiny.config, tiny.params, tokenizer=tiny.tokenizer, visual_decoder=decoder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A random CLIP in the layout of transformers."""
    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    folder.mkdir()
    words = [*WORDS, "a", "[START]", "[END]"]
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**tower, "vocab_size": len(words), "max_position_embeddings": 8}
    vision = {**tower, "image_size": 16, "patch_size": 4}
    config = {"projection_dim": 12, "text_config": text, "vision_config": vision}
    rng = np.random.default_rng(0)
    draw = lambda row: {n: rng.normal(scale=0.3, size=row.torch_shape).astype(np.float32) for n in row.names}
    tensors = {k: v for row in clip_text_table(ClipTextConfig.from_transformers(config)) for k, v in draw(row).items()}
    for row in clip_table(ClipVisionConfig.from_transformers(config)):
        prefix = "" if row.torch.startswith("visual_projection") else "vision_model."
        tensors |= {prefix + name: value for name, value in draw(row).items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 16}, "crop_size": 16}))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[START]", len(words) - 2), ("[END]", len(words) - 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[START] $A [END]", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """FID's Inception with random weights."""
    rng = np.random.default_rng(0)
    tensors = {}
    for row in inception_table():
        fan_in = np.prod(row.torch_shape[1:]) or 1
        value = rng.standard_normal(row.torch_shape, np.float32) * np.float32(np.sqrt(2 / fan_in))
        tensors[row.torch] = np.abs(value) + 0.5 if row.torch.endswith(("running_var", "bn.weight")) else value
    path = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05.safetensors"
    save_file({name: np.asarray(value, np.float32) for name, value in tensors.items()}, path)
    return path


def test_clip_scores(with_decoder, clip, tmp_path):
    root = write_layout("clip_score", tmp_path / "data")
    options = ScoreOptions(networks=ImageNetworks(clip=clip))
    out = tmp_path / "out"
    result = evaluate(
        with_decoder, "clip_score", root, output=out, batch_size=2, options=options, sampling={**QUICK, "seed": 1}
    )
    summary = result.summary()
    assert summary["protocol"]["clip"].startswith("tiny-clip (")
    assert -100 <= summary["scores"]["CLIP-T"] <= 100
    assert summary["sampling"]["steps"] == 2
    images = {path.name: path.read_bytes() for path in (out / "clip_score/images").iterdir()}
    assert len(images) == len(set(images.values())) == 3
    assert "data:image/png" in (out / "clip_score/report.html").read_text()

    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            with_decoder, "clip_score", root, output=again, batch_size=2, options=options,
            sampling={**QUICK, "seed": 1}, progress=stop_after(2),
        )  # fmt: skip
    evaluate(
        with_decoder, "clip_score", root, output=again, batch_size=2, options=options, sampling={**QUICK, "seed": 1}
    )
    assert images == {path.name: path.read_bytes() for path in (again / "clip_score/images").iterdir()}


def stop_after(count):
    def progress(done, total):
        if done >= count:
            raise KeyboardInterrupt

    return progress


@pytest.mark.e2e
def test_fid(with_decoder, inception, tmp_path):
    root = write_layout("coco_fid", tmp_path / "data")
    networks = ImageNetworks(inception=inception, rows=1)
    result = evaluate(
        with_decoder, "coco_fid", root, output=tmp_path / "out", batch_size=4, sampling=QUICK,
        options=ScoreOptions(networks=networks),
    )  # fmt: skip
    summary = result.summary()
    assert summary["scores"]["FID"] > 0
    assert summary["protocol"]["resize"] == "clean"
    sizes = {PIL.Image.open(path).size for path in (tmp_path / "out/coco_fid/images").iterdir()}
    assert sizes == {(256, 256)}
    captions = json.loads((tmp_path / "out/coco_fid/captions.json").read_text())
    assert [row["image_id"] for row in captions] == [example.key[0] for example in result.examples]

    (stored,) = (tmp_path / "out/features").glob("fid-reference-*.npz")
    statistics = read_statistics(stored)
    assert statistics.covariance.shape == (2048, 2048)
    paths = [example.details["image"] for example in result.examples]
    real = networks.load_fid().reference(paths, store=tmp_path / "out/features")  # read, not computed again
    np.testing.assert_array_equal(real.mean, statistics.mean)


@pytest.mark.parametrize("name", ["autoencoding", "geneval", "dpg"])
def test_layouts(name, with_decoder, tmp_path):
    root = write_layout(name, tmp_path / "data")
    out = tmp_path / "out" / name
    result = evaluate(with_decoder, name, root, output=tmp_path / "out", batch_size=2, sampling=QUICK)
    assert result.scored is None
    if name == "autoencoding":
        assert len(list((out / "images").iterdir())) == 3
    elif name == "geneval":
        first = out / "images/00000"
        assert sorted(path.name for path in (first / "samples").iterdir()) == [f"{n:04d}.png" for n in range(4)]
        assert json.loads((first / "metadata.jsonl").read_text())["prompt"] == "a photo of a red"
        assert len({path.read_bytes() for path in (first / "samples").iterdir()}) == 4
    else:
        assert sorted(path.name for path in (out / "images").iterdir()) == ["0.png", "1.png"]
        side = PIL.Image.open(out / "samples/0_0.png").size[0]
        sheet = np.asarray(PIL.Image.open(out / "images/0.png"))
        assert sheet.shape[:2] == (2 * side, 2 * side)
        np.testing.assert_array_equal(sheet[:side, side:], np.asarray(PIL.Image.open(out / "samples/0_1.png")))


def test_a_model_without_a_visual_decoder(tiny, tmp_path):
    with pytest.raises(UserError, match="geneval requires a visual decoder"):
        evaluate(tiny, "geneval", tmp_path)


def test_weights_of_another_network(tmp_path):
    save_file({"conv1.weight": np.zeros((2, 2), np.float32)}, tmp_path / "resnet.safetensors")
    with pytest.raises(UserError, match="do not fit") as caught:
        load_inception(tmp_path / "resnet.safetensors")
    assert "\n" not in str(caught.value)
    np.savez(tmp_path / "x.npz", mean=np.zeros(3))
    with pytest.raises(UserError, match="mu"):
        read_statistics(tmp_path / "x.npz")


def test_resizes():
    image = np.random.default_rng(0).integers(0, 256, (6, 4, 3)).astype(np.uint8)
    legacy = resize_for_inception(image, 8, Resize.LEGACY_TENSORFLOW)
    # corners are aligned: pixel 2i of the result is pixel i of the 4 columns, and rows go by 6 / 8
    np.testing.assert_allclose(legacy[0, ::2], image[0])
    np.testing.assert_allclose(legacy[0, 1], (image[0, 0].astype(float) + image[0, 1]) / 2)
    np.testing.assert_allclose(legacy[4, 0], image[3, 0])
    clean = resize_for_inception(image, 3, Resize.CLEAN)
    assert clean.dtype == np.float32
    expected = PIL.Image.fromarray(image[:, :, 0].astype(np.float32)).resize((3, 3), PIL.Image.Resampling.BICUBIC)
    np.testing.assert_allclose(clean[:, :, 0], np.clip(np.asarray(expected), 0, 255))
    flat = np.full((5, 7, 3), 100, np.uint8)
    for way in Resize:
        np.testing.assert_allclose(resize_for_inception(flat, 9, way), 100, rtol=1e-5)
