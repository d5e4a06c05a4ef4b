"""The pixel reader reads true drawings without a slip, blurred ones nearly so, and sees nothing where nothing is."""

import numpy as np
import pytest
import scipy.ndimage

from emu_jax.demo.world.classifier import agreement, read_scene
from emu_jax.demo.world.rendering import render
from emu_jax.demo.world.scenes import (
    BACKGROUNDS,
    Background,
    Color,
    Object,
    Place,
    Scene,
    Shape,
    Size,
    Split,
    sample_scene,
)

KINDS = ("shape", "color", "size", "place")


def blurred(image, rng, *, blur, noise):
    soft = scipy.ndimage.gaussian_filter(image.astype(float), (blur, blur, 0))
    return np.clip(soft + noise * rng.standard_normal(image.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def drawings():
    rng = np.random.default_rng(7)
    scenes = [sample_scene(rng, split=Split.TEST, num_objects=1) for _ in range(2000)]
    return [(scene, render(scene, rng)) for scene in scenes]


def test_two_thousand_true_drawings_are_read_right(drawings):
    read = [read_scene(image) for _, image in drawings]
    results = [agreement(found, scene) for found, (scene, _) in zip(read, drawings, strict=True)]
    shares = {name: sum(result[name] for result in results) / 2000 for name in results[0]}
    assert set(shares) == {*KINDS, "background", "color_and_shape"}
    assert all(share >= 0.99 for share in shares.values()), shares
    assert {scene.background for scene, _ in drawings} == set(BACKGROUNDS)
    assert all(len(found.objects) == 1 for found in read)


@pytest.mark.parametrize(("blur", "noise", "least"), [(0.7, 0, 0.99), (1.0, 0, 0.99), (1.0, 12, 0.97), (0.7, 25, 0.97)])
def test_blurred_and_noisy_drawings_are_read_nearly_as_well(drawings, blur, noise, least):
    rng = np.random.default_rng(0)
    results = [
        agreement(read_scene(blurred(image, rng, blur=blur, noise=noise)), scene) for scene, image in drawings[:200]
    ]
    assert np.mean([result["color_and_shape"] for result in results]) >= least
    assert np.mean([all(result.values()) for result in results]) >= least


@pytest.mark.parametrize("count", [2, 3])
def test_several_objects_are_told_apart(count):
    rng = np.random.default_rng(count)
    right = 0
    for _ in range(150):
        scene = sample_scene(rng, split=Split.TEST, num_objects=count)
        read = read_scene(render(scene, rng))
        right += [tuple(getattr(item, kind) for kind in KINDS) for item in read.objects] == [
            tuple(getattr(item, kind) for kind in KINDS) for item in scene.objects
        ]
    assert right >= 148


@pytest.mark.parametrize("size", [24, 48, 64, 96])
def test_any_size_is_read(size):
    rng = np.random.default_rng(size)
    scenes = [sample_scene(rng, num_objects=1) for _ in range(50)]
    assert all(all(agreement(read_scene(render(scene, rng, size=size)), scene).values()) for scene in scenes)


@pytest.mark.parametrize("level", [0, 14, 128, 242, 255])
def test_nothing_is_seen_in_plain_pictures(level):
    noise = np.random.default_rng(0).normal(level, 5, (32, 32, 3))
    for image in (np.full((32, 32, 3), level, np.uint8), np.clip(noise, 0, 255).astype(np.uint8)):
        read = read_scene(image)
        assert read.objects == ()
        assert read.largest is None


def test_noise_is_not_taken_for_objects():
    rng = np.random.default_rng(0)
    found = [len(read_scene(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).objects) for _ in range(50)]
    assert np.mean(found) < 0.5


def test_agreement_says_what_is_wrong():
    rng = np.random.default_rng(0)
    shown = Scene((Object(Shape.CROSS, Color.BLUE, Size.LARGE, Place.CENTER),), Background.GRAY)
    asked = Scene((Object(Shape.CROSS, Color.RED, Size.SMALL, Place.CENTER),), Background.GRAY)
    assert agreement(read_scene(render(shown, rng)), asked) == {
        "shape": True,
        "color": False,
        "size": False,
        "place": True,
        "background": True,
        "color_and_shape": False,
    }
    plain = read_scene(np.full((32, 32, 3), 128, np.uint8))
    assert [name for name, right in agreement(plain, asked).items() if right] == ["background"]


def test_specks_do_not_hide_the_object():
    scene = Scene((Object(Shape.TRIANGLE, Color.GREEN, Size.LARGE, Place.TOP_LEFT),), Background.WHITE)
    image = render(scene, np.random.default_rng(0))
    image[20:22, 20:22] = (220, 30, 30)
    image[26:31, 26:31] = (40, 70, 220)
    assert all(agreement(read_scene(image), scene).values())
