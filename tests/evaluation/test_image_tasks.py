"""Tasks that generate images: files, layouts, FID and CLIP scores through tiny networks."""

from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file

from emu_jax.errors import UserError
from emu_jax.evaluation.api import evaluate
from emu_jax.evaluation.image_metrics.fid import read_statistics
from emu_jax.evaluation.image_metrics.inception_table import inception_table, load_inception
from emu_jax.evaluation.image_metrics.networks import ImageNetworks
from emu_jax.evaluation.image_metrics.resize import Resize, resize_for_inception
from emu_jax.evaluation.task import ScoreOptions
from emu_jax.generation.pipeline import EmuPipeline
from tests.evaluation.layouts import write_layout
from tests.generation.conftest import tiny_visual_decoder

QUICK = {"steps": 2, "sampler": "ddim"}


@pytest.fixture(scope="module")
def with_decoder(tiny):
    decoder = tiny_visual_decoder(tiny.config.decoder.width)
    return EmuPipeline(tiny.config, tiny.params, tokenizer=tiny.tokenizer, visual_decoder=decoder)


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
