"""The safety checker: flagged images, the published layout, invalid files. tests/parity compares it with diffusers."""

import json

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import load_file, save_file

from emu_jax.convert.safety_checker import load_safety_checker
from emu_jax.diffusion.clip_vision import ClipVision, ClipVisionConfig
from emu_jax.diffusion.safety import Concepts, Preprocessing, SafetyChecker
from emu_jax.errors import UserError

SIZES = {
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
WIDTH = 6


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the published names with shapes of small sizes."""
    prefix = "vision_model.vision_model."
    found = {
        "concept_embeds": (17, WIDTH), "concept_embeds_weights": (17,),
        "special_care_embeds": (3, WIDTH), "special_care_embeds_weights": (3,),
        "visual_projection.weight": (WIDTH, 8),
        f"{prefix}embeddings.class_embedding": (8,),
        f"{prefix}embeddings.patch_embedding.weight": (8, 3, 4, 4),
        f"{prefix}embeddings.position_embedding.weight": (5, 8),
        f"{prefix}embeddings.position_ids": (1, 5),
    }  # fmt: skip
    linear = {"mlp.fc1": (12, 8), "mlp.fc2": (8, 12)}
    linear |= {f"self_attn.{name}": (8, 8) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    norms = ["pre_layrnorm", "post_layernorm"]
    for layer in (f"encoder.layers.{i}." for i in range(2)):
        norms += [f"{layer}layer_norm1", f"{layer}layer_norm2"]
        for name, shape in linear.items():
            found |= {f"{prefix}{layer}{name}.weight": shape, f"{prefix}{layer}{name}.bias": shape[:1]}
    return found | {f"{prefix}{name}.{kind}": (8,) for name in norms for kind in ("weight", "bias")}


@pytest.fixture
def folder(tmp_path):
    for part in ("safety_checker", "feature_extractor"):
        (tmp_path / part).mkdir()
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes().items()}
    save_file(arrays, tmp_path / "safety_checker" / "model.safetensors")
    config = {"projection_dim": WIDTH, "vision_config": SIZES, "text_config": {"hidden_size": 5}}
    (tmp_path / "safety_checker" / "config.json").write_text(json.dumps(config))
    (tmp_path / "feature_extractor" / "preprocessor_config.json").write_text('{"size": 8, "crop_size": 8}')
    return tmp_path


def checker(*, special: float) -> SafetyChecker:
    """Return a checker of two concepts on the first two axes with threshold 0.5, and a special one on the third."""
    axes = np.eye(3, dtype=np.float32)
    return SafetyChecker(
        ClipVision(ClipVisionConfig()),
        params={},
        concepts=Concepts(2 * axes[:2], np.array([0.5, 0.5], np.float32)),
        special=Concepts(axes[2:], np.array([special], np.float32)),
        preprocessing=Preprocessing(),
    )


def test_a_special_concept_lowers_all_thresholds():
    cosine = 0.495
    embeddings = np.array([[cosine, 0, np.sqrt(1 - cosine**2)], [0.505, 0, np.sqrt(1 - 0.505**2)]], np.float32) * 7
    plain, strict = checker(special=0.9).scores(embeddings), checker(special=0.8).scores(embeddings)
    np.testing.assert_allclose(plain[:, 0], [-0.005, 0.005], atol=1e-6)
    np.testing.assert_allclose(strict[:, 0], [0.005, 0.015], atol=1e-6)
    np.testing.assert_allclose(strict[:, 1], -0.49, atol=1e-6)


def test_scores_are_rounded():
    just_above = np.array([[0.5004, np.sqrt(1 - 0.5004**2), 0]], np.float32)
    assert checker(special=0.9).scores(just_above)[0, 0] == 0.0


def test_the_center_of_an_image_is_used():
    image = PIL.Image.new("RGB", (24, 8), "red")
    image.paste("blue", (8, 0, 16, 8))
    prepare = Preprocessing(size=8, crop_size=8, image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    assert (prepare(image) == (-1, -1, 1)).all()
    assert (prepare(image.transpose(PIL.Image.Transpose.ROTATE_90)) == (-1, -1, 1)).all()
    assert prepare(PIL.Image.new("RGBA", (5, 9))).shape == (8, 8, 3)


def test_the_published_layout_is_read(folder):
    safety = load_safety_checker(folder)
    assert safety.encoder.config.num_hidden_layers == 2
    assert safety([]) == []
    images = [PIL.Image.new("RGB", (9, 8), color) for color in ("red", "white")]
    flagged = safety(images)
    assert len(flagged) == 2
    assert all(isinstance(one, bool) for one in flagged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("concept_embeds"), "has no concept_embeds"),
        (lambda arrays: arrays.pop("vision_model.vision_model.pre_layrnorm.weight"), "missing .pre_layrnorm.weight"),
        (lambda arrays: arrays.update({"visual_projection.weight": np.zeros((5, 8), np.float32)}), r"is \[5, 8\]"),
    ],
)
def test_weights_that_do_not_fit(folder, change, message):
    path = folder / "safety_checker" / "model.safetensors"
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    with pytest.raises(UserError, match=message):
        load_safety_checker(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_center_crop": False}, "do_center_crop must be true"),
        ({"resample": 2}, "resample must be 3"),
        ({"crop_size": {"height": 8, "width": 9}}, "crop_size must be square"),
        ({"size": {"height": 8, "width": 8}}, "resize the shortest_edge"),
        ({"crop_size": 16}, "images of 16 pixels, but the safety checker expects 8"),
    ],
)
def test_unsupported_feature_extractors(folder, config, message):
    path = folder / "feature_extractor" / "preprocessor_config.json"
    path.write_text(json.dumps({"size": 8, "crop_size": 8} | config))
    with pytest.raises(UserError, match=message):
        load_safety_checker(folder)
