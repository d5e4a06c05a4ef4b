"""Our safety checker and that of diffusers, with small random weights: embeddings, scores, flagged images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

torch = pytest.importorskip("torch", reason="requires PyTorch: `make parity`")
pytest.importorskip("diffusers", reason="requires diffusers: `make parity`")

from diffusers.pipelines.stable_diffusion.safety_checker import (  # noqa: E402
    StableDiffusionSafetyChecker,
    cosine_distance,
)
from transformers import CLIPConfig  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402

from emu_jax.convert.safety_checker import load_safety_checker  # noqa: E402

SIZE, WIDTH = 16, 12
EXTRACTOR = {"size": {"shortest_edge": SIZE}, "crop_size": SIZE}


@pytest.fixture(scope="module")
def images() -> list[PIL.Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(16, 16), (40, 25), (25, 41), (64, 64), (17, 16)] * 12
    return [PIL.Image.fromarray(rng.integers(0, 256, (h, w, 3)).astype(np.uint8)) for w, h in sizes]


@pytest.fixture(scope="module")
def theirs(images) -> StableDiffusionSafetyChecker:
    """A checker whose thresholds some images exceed, some of them those of special concepts."""
    torch.manual_seed(0)
    tower = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": SIZE, "patch_size": 4,
    }  # fmt: skip
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=tower, projection_dim=WIDTH)).eval()
    with torch.no_grad():
        for name, tensor in checker.named_parameters():
            if "norm" not in name:
                tensor.normal_(0, 0.5)
        pixels = CLIPImageProcessorPil(**EXTRACTOR)(images, return_tensors="pt").pixel_values
        embeddings = checker.visual_projection(checker.vision_model(pixels)[1])
        for name, quantile in (("concept", 0.98), ("special_care", 0.8)):
            cosines = cosine_distance(embeddings, getattr(checker, f"{name}_embeds"))
            getattr(checker, f"{name}_embeds_weights").copy_(cosines.quantile(quantile, dim=0))
    return checker


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers")
    theirs.save_pretrained(folder / "safety_checker")
    CLIPImageProcessorPil(**EXTRACTOR).save_pretrained(folder / "feature_extractor")
    return folder


@torch.no_grad()
def test_the_same_images_are_flagged(theirs, folder, images):
    ours = load_safety_checker(folder)
    extractor = CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor")
    pixels = extractor(images, return_tensors="pt").pixel_values
    prepared = np.stack([ours.preprocessing(image) for image in images])
    np.testing.assert_allclose(prepared, pixels.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-5)

    embeddings = theirs.visual_projection(theirs.vision_model(pixels)[1])
    np.testing.assert_allclose(ours.embed(prepared), embeddings, rtol=0, atol=1e-4 * float(embeddings.abs().max()))
    _, flagged = theirs(clip_input=pixels, images=np.ones((len(images), 2, 2, 3)))
    assert ours(images) == flagged
    assert 5 < sum(flagged) < len(images) - 5

    # Some are flagged only because a special concept lowered the thresholds.
    cosines = cosine_distance(embeddings, theirs.concept_embeds) - theirs.concept_embeds_weights
    without_special = (cosines.numpy().round(3) > 0).any(axis=1)
    assert any(with_special and not without for with_special, without in zip(flagged, without_special, strict=True))


def test_older_layouts_are_read(theirs, folder, images, tmp_path):
    """The published files have a `.bin` with the buffer of positions, `vision_config_dict`, and integer sizes."""
    for part in ("safety_checker", "feature_extractor"):
        (tmp_path / part).mkdir()
    prefix = "vision_model.vision_model."
    state = {
        prefix + name.removeprefix(prefix).removeprefix("vision_model.")
        if name.startswith("vision_model.")
        else name: t
        for name, t in theirs.state_dict().items()
    }
    state[f"{prefix}embeddings.position_ids"] = torch.arange(17)[None]
    torch.save(state, tmp_path / "safety_checker" / "pytorch_model.bin")
    config = json.loads((folder / "safety_checker" / "config.json").read_text())
    tower = config.pop("vision_config")
    config |= {"vision_config": None, "vision_config_dict": tower}
    (tmp_path / "safety_checker" / "config.json").write_text(json.dumps(config))
    extractor = {"size": SIZE, "crop_size": SIZE, "resample": 3, "feature_extractor_type": "CLIPFeatureExtractor"}
    (tmp_path / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(extractor))
    old, new = load_safety_checker(tmp_path), load_safety_checker(folder)
    pixels = np.stack([new.preprocessing(image) for image in images[:3]])
    np.testing.assert_array_equal(old.embed(pixels), new.embed(pixels))
    np.testing.assert_array_equal(old.scores(old.embed(pixels)), new.scores(new.embed(pixels)))
