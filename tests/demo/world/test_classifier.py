"""The classifier recovers rendered scenes, nearly all blurred ones, and detects nothing in plain or noisy images."""

import numpy as np
import pytest
import scipy.ndimage

from emu_jax.demo.world.classifier import agreement, classify_scene
from emu_jax.demo.world.rendering import render
from emu_jax.demo.world.scenes import (
    BACKGROUNDS,
    Background,
    Color,
    Location,
    Object,
    Scene,
    Shape,
    Size,
    Split,
    sample_scene,
)

ATTRIBUTES = ("shape", "color", "size", "location")


def blurred(image, rng, *, blur, noise):
    soft = scipy.ndimage.gaussian_filter(image.astype(float), (blur, blur, 0))
    return np.clip(soft + noise * rng.standard_normal(image.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def rendered():
    rng = np.random.default_rng(7)
    scenes = [sample_scene(rng, split=Split.TEST, num_objects=1) for _ in range(2000)]
    return [(scene, render(scene, rng)) for scene in scenes]


def test_two_thousand_rendered_scenes_are_recovered(rendered):
    detected = [classify_scene(image) for _, image in rendered]
    results = [agreement(found, scene) for found, (scene, _) in zip(detected, rendered, strict=True)]
    accuracies = {name: sum(result[name] for result in results) / 2000 for name in results[0]}
    assert set(accuracies) == {*ATTRIBUTES, "background", "color_and_shape"}
    assert all(accuracy >= 0.99 for accuracy in accuracies.values()), accuracies
    assert {scene.background for scene, _ in rendered} == set(BACKGROUNDS)
    assert all(len(found.objects) == 1 for found in detected)


@pytest.mark.parametrize(
    ("blur", "noise", "minimum"), [(0.7, 0, 0.99), (1.0, 0, 0.99), (1.0, 12, 0.97), (0.7, 25, 0.97)]
)
def test_nearly_all_blurred_and_noisy_images_are_recovered(rendered, blur, noise, minimum):
    rng = np.random.default_rng(0)
    results = [
        agreement(classify_scene(blurred(image, rng, blur=blur, noise=noise)), scene) for scene, image in rendered[:200]
    ]
    assert np.mean([result["color_and_shape"] for result in results]) >= minimum
    assert np.mean([all(result.values()) for result in results]) >= minimum


@pytest.mark.parametrize("count", [2, 3])
def test_several_objects_are_separated(count):
    rng = np.random.default_rng(count)
    correct = 0
    for _ in range(150):
        scene = sample_scene(rng, split=Split.TEST, num_objects=count)
        detected = classify_scene(render(scene, rng))
        correct += [tuple(getattr(item, name) for name in ATTRIBUTES) for item in detected.objects] == [
            tuple(getattr(item, name) for name in ATTRIBUTES) for item in scene.objects
        ]
    assert correct >= 148


@pytest.mark.parametrize("size", [24, 48, 64, 96])
def test_images_of_any_size(size):
    rng = np.random.default_rng(size)
    scenes = [sample_scene(rng, num_objects=1) for _ in range(50)]
    assert all(all(agreement(classify_scene(render(scene, rng, size=size)), scene).values()) for scene in scenes)


@pytest.mark.parametrize("level", [0, 14, 128, 242, 255])
def test_plain_images_have_no_objects(level):
    noise = np.random.default_rng(0).normal(level, 5, (32, 32, 3))
    for image in (np.full((32, 32, 3), level, np.uint8), np.clip(noise, 0, 255).astype(np.uint8)):
        detected = classify_scene(image)
        assert detected.objects == ()
        assert detected.largest is None


def test_noise_has_few_objects():
    rng = np.random.default_rng(0)
    found = [len(classify_scene(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).objects) for _ in range(50)]
    assert np.mean(found) < 0.5


def test_agreement_per_attribute():
    rng = np.random.default_rng(0)
    rendered_scene = Scene((Object(Shape.CROSS, Color.BLUE, Size.LARGE, Location.CENTER),), Background.GRAY)
    expected = Scene((Object(Shape.CROSS, Color.RED, Size.SMALL, Location.CENTER),), Background.GRAY)
    assert agreement(classify_scene(render(rendered_scene, rng)), expected) == {
        "shape": True,
        "color": False,
        "size": False,
        "location": True,
        "background": True,
        "color_and_shape": False,
    }
    plain = classify_scene(np.full((32, 32, 3), 128, np.uint8))
    assert [name for name, correct in agreement(plain, expected).items() if correct] == ["background"]


def test_specks_are_smaller_than_the_object():
    scene = Scene((Object(Shape.TRIANGLE, Color.GREEN, Size.LARGE, Location.TOP_LEFT),), Background.WHITE)
    image = render(scene, np.random.default_rng(0))
    image[20:22, 20:22] = (220, 30, 30)
    image[26:31, 26:31] = (40, 70, 220)
    assert all(agreement(classify_scene(image), scene).values())
