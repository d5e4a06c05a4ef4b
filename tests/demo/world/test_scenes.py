"""Scenes and their images: held-out combinations, rendering, and reproducibility by seed."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu_jax.demo.world.motion import Direction, render_clip, sample_clip
from emu_jax.demo.world.rendering import BACKGROUND_VALUES, COLOR_VALUES, NO_JITTER, render
from emu_jax.demo.world.scenes import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT,
    LOCATIONS,
    SHAPES,
    Background,
    Color,
    Location,
    Object,
    Scene,
    Shape,
    Size,
    Split,
    has_held_out,
    is_held_out,
    sample_scene,
)
from emu_jax.demo.world.stories import sample_blend, sample_in_context, sample_page, sample_storyboard

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
RED_CIRCLE = Object(Shape.CIRCLE, Color.RED, Size.LARGE, Location.TOP_LEFT)


def test_fifteen_per_cent_are_held_out_and_every_pair_remains():
    assert len(HELD_OUT) == 18 == round(0.15 * len(COLORS) * len(SHAPES) * len(LOCATIONS))
    training = set(itertools.product(COLORS, SHAPES, LOCATIONS)) - set(HELD_OUT)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        options = (COLORS, SHAPES, LOCATIONS)
        pairs = {(triple[first], triple[second]) for triple in training}
        assert pairs == set(itertools.product(options[first], options[second]))
    assert set(Counter(color for color, _, _ in HELD_OUT).values()) == {3}
    assert set(Counter(location for _, _, location in HELD_OUT)) == set(LOCATIONS)


@given(rng=seeds, count=st.sampled_from([None, 1, 2, 3]))
def test_training_scenes_have_no_held_out_combination(rng, count):
    assert not has_held_out(sample_scene(rng, split=Split.TRAIN, num_objects=count))
    clip = sample_clip(rng, split=Split.TRAIN)
    story, task, page = sample_storyboard(rng), sample_in_context(rng), sample_page(rng)
    assert not is_held_out(clip.start)
    assert not is_held_out(clip.end)
    scenes = [*story.frames, task.first, task.second, task.target, *(image.scene for image in page.images)]
    assert not any(map(has_held_out, scenes))


@given(rng=seeds, count=st.sampled_from([None, 1, 2, 3]))
def test_held_out_scenes_have_exactly_one_held_out_object(rng, count):
    scene = sample_scene(rng, split=Split.HELD_OUT, num_objects=count)
    assert sum(map(is_held_out, scene.objects)) == 1
    assert count in (None, len(scene.objects))
    clip = sample_clip(rng, split=Split.HELD_OUT)
    assert is_held_out(clip.start) or is_held_out(clip.end)
    assert has_held_out(sample_in_context(rng, split=Split.HELD_OUT).target)


def test_half_of_the_test_scenes_are_held_out():
    rng = np.random.default_rng(0)
    found = sum(has_held_out(sample_scene(rng, split=Split.TEST, num_objects=1)) for _ in range(2000))
    assert 920 < found < 1080  # 3.6 standard deviations


def test_training_scenes_cover_all_other_combinations():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(6000)]
    seen = {(item.color, item.shape, item.location) for scene in scenes for item in scene.objects}
    assert seen == set(itertools.product(COLORS, SHAPES, LOCATIONS)) - set(HELD_OUT)
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)


def test_ambiguous_scenes_are_refused():
    with pytest.raises(ValueError, match="differ"):
        Scene((RED_CIRCLE, Object(Shape.CIRCLE, Color.RED, Size.SMALL, Location.TOP_RIGHT)), Background.WHITE)
    with pytest.raises(ValueError, match="differ"):
        Scene((RED_CIRCLE, Object(Shape.SQUARE, Color.BLUE, Size.SMALL, Location.TOP_LEFT)), Background.WHITE)
    with pytest.raises(ValueError, match="center"):
        Scene((RED_CIRCLE, Object(Shape.SQUARE, Color.BLUE, Size.SMALL, Location.CENTER)), Background.WHITE)
    with pytest.raises(ValueError, match="one to three"):
        Scene((), Background.WHITE)


@given(seed=st.integers(0, 1000), size=st.sampled_from([32, 48, 64]))
def test_a_seed_gives_the_same_scene_and_the_same_pixels(seed, size):
    def sample():
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng)
        return scene, render(scene, rng, size=size)

    (first, pixels), (second, again) = sample(), sample()
    assert first == second
    assert pixels.shape == (size, size, 3)
    np.testing.assert_array_equal(pixels, again)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("color", COLORS)
def test_an_object_has_its_color_at_its_location_and_the_rest_is_background(color, background):
    scene = Scene((Object(Shape.SQUARE, color, Size.LARGE, Location.TOP_RIGHT),), background)
    image = render(scene, np.random.default_rng(0), jitter=NO_JITTER)
    np.testing.assert_array_equal(image[8, 24], COLOR_VALUES[color])
    np.testing.assert_array_equal(image[24, 8], [BACKGROUND_VALUES[background]] * 3)
    different = (image != BACKGROUND_VALUES[background]).any(-1)
    assert not different[16:].any()
    assert not different[:, :16].any()


@pytest.mark.parametrize(("size", "minimum", "maximum"), [(Size.SMALL, 9, 10), (Size.LARGE, 14, 16)])
@pytest.mark.parametrize("shape", SHAPES)
def test_objects_are_wide_enough_for_their_shape(shape, size, minimum, maximum):
    scene = Scene((Object(shape, Color.RED, size, Location.CENTER),), Background.BLACK)
    mask = (render(scene, np.random.default_rng(0), jitter=NO_JITTER)[:, :, 0] > 70).any(0)
    assert minimum <= mask.sum() <= maximum


def test_renderings_of_a_scene_differ():
    rng = np.random.default_rng(0)
    scene = Scene((RED_CIRCLE,), Background.WHITE)
    assert len({render(scene, rng).tobytes() for _ in range(10)}) == 10


@pytest.mark.parametrize("direction", Direction)
def test_clips_move_in_their_direction(direction):
    rng = np.random.default_rng(1)
    clip = next(clip for clip in iter(lambda: sample_clip(rng), None) if clip.direction is direction)
    frames = render_clip(clip, rng, num_frames=4).astype(float)
    assert frames.shape == (4, 32, 32, 3)
    colored = np.ptp(frames, axis=-1)
    colored = np.where(colored > 60, colored, 0)
    x = (colored.sum(1) * np.arange(32)).sum(1) / colored.sum((1, 2))
    y = (colored.sum(2) * np.arange(32)).sum(1) / colored.sum((1, 2))
    along, across = (x, y) if direction in (Direction.LEFT, Direction.RIGHT) else (y, x)
    sign = 1 if direction in (Direction.RIGHT, Direction.DOWN) else -1
    assert (sign * np.diff(along) > 4).all()
    assert np.ptp(across) < 0.5


@given(rng=seeds, split=st.sampled_from(Split))
def test_storyboards_change_one_attribute_at_a_time(rng, split):
    story = sample_storyboard(rng, split=split)
    assert len(story.frames) == len(story.subtitles) in (3, 4)
    for before, after in itertools.pairwise(story.frames):
        attributes = ("shape", "color", "size", "location")
        changed = [name for name in attributes if getattr(before.object, name) is not getattr(after.object, name)]
        assert len(changed) == 1
        assert before.background is after.background


@given(rng=seeds, split=st.sampled_from(Split))
def test_in_context_targets_differ_from_the_first_image_only_in_color(rng, split):
    task = sample_in_context(rng, split=split)
    first, second, target = task.first.object, task.second.object, task.target.object
    assert first.color is not second.color
    assert first.shape is not second.shape
    assert target == Object(first.shape, second.color, first.size, first.location)
    assert task.target.background is task.first.background
    assert not has_held_out(task.first)
    assert not has_held_out(task.second)
    assert task.as_storyboard().frames == (task.first, task.second, task.target)


@given(rng=seeds)
def test_blends_and_pages(rng):
    first, second = sample_blend(rng)
    assert first.object.shape is not second.object.shape
    assert first.object.color is not second.object.color
    page = sample_page(rng)
    matched = [image for image in page.images if image.similarity >= 0.32]
    assert len(matched) in (2, 3)
    assert len({image.sentence for image in page.images}) == len(page.images)
