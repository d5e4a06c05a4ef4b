"""Documents of several images: storyboards, in-context tasks, blends and web pages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from emu_jax.demo.world.grammar import caption, where
from emu_jax.demo.world.scenes import (
    COLORS,
    LOCATIONS,
    SHAPES,
    SIZES,
    Object,
    Option,
    Scene,
    Split,
    choose,
    has_held_out,
    is_held_out,
    sample_scene,
)


@dataclass(frozen=True)
class Storyboard:
    """Frames in time. `subtitles[i]` describes and precedes `frames[i]`; `closing` follows the last frame."""

    frames: tuple[Scene, ...]
    subtitles: tuple[str, ...]
    closing: str = ""


_CLOSINGS = ("that is all for today.", "thank you for watching.", "see you next time.")


def _other(rng: np.random.Generator, options: Sequence[Option], present: Option) -> Option:
    return choose(rng, [option for option in options if option is not present])


def next_step(item: Object, rng: np.random.Generator) -> tuple[Object, str]:
    """Return `item` with one attribute changed, and the sentence for the change."""
    kind = choose(rng, ("location", "color", "shape", "size"))
    if kind == "location":
        location = _other(rng, LOCATIONS, item.location)
        words = choose(rng, (f"it moves to the {location.value}", f"now it is {where(location)}"))
        return replace(item, location=location), words
    if kind == "color":
        color = _other(rng, COLORS, item.color)
        return replace(item, color=color), choose(rng, (f"it turns {color.value}", f"now it is {color.value}"))
    if kind == "shape":
        shape = _other(rng, SHAPES, item.shape)
        return replace(item, shape=shape), choose(rng, (f"it becomes a {shape.value}", f"now it is a {shape.value}"))
    size = _other(rng, SIZES, item.size)
    return replace(item, size=size), choose(rng, (f"it becomes {size.value}", f"now it is {size.value}"))


def sample_storyboard(rng: np.random.Generator, *, split: Split = Split.TRAIN) -> Storyboard:
    """Return three or four frames of one object that changes one attribute at a time.

    In TRAIN no frame is held out. Sometimes the first frame has no subtitle, or a sentence follows the last frame.
    """
    scene = sample_scene(rng, split=split, num_objects=1)
    frames, subtitles = [scene], ["" if rng.random() < 0.1 else caption(scene, rng)]
    num_frames = int(rng.integers(3, 5))
    while len(frames) < num_frames:
        item, words = next_step(frames[-1].object, rng)
        if split is Split.TRAIN and is_held_out(item):
            continue
        frames.append(Scene((item,), scene.background))
        subtitles.append(words)
    return Storyboard(tuple(frames), tuple(subtitles), choose(rng, _CLOSINGS) if rng.random() < 0.2 else "")


@dataclass(frozen=True)
class InContextTask:
    """Two images, an instruction, and the target image.

    `texts[0]` precedes the first image, `texts[1]` the second, `texts[2]` (the instruction) the target. Training
    documents and prompts have the same order.
    """

    first: Scene
    second: Scene
    target: Scene
    texts: tuple[str, str, str] = ("image 1", "image 2", "the object of image 1 in the color of image 2")

    def as_storyboard(self) -> Storyboard:
        """Return the task as a storyboard of three frames."""
        return Storyboard((self.first, self.second, self.target), self.texts)


def sample_in_context(rng: np.random.Generator, *, split: Split = Split.TRAIN) -> InContextTask:
    """Return the task "the object of image 1 in the color of image 2". The two objects differ in shape and color.

    The two given images always show combinations of the training split; `split` determines whether the target is held
    out.
    """
    held_out = split is Split.HELD_OUT or (split is Split.TEST and rng.random() < 0.5)
    while True:
        first, second = (sample_scene(rng, split=Split.TRAIN, num_objects=1) for _ in range(2))
        one, two = first.object, second.object
        target = replace(first, objects=(replace(one, color=two.color),))
        if one.shape is not two.shape and one.color is not two.color and has_held_out(target) == held_out:
            return InContextTask(first, second, target)


def sample_blend(rng: np.random.Generator, *, split: Split = Split.TEST) -> tuple[Scene, Scene]:
    """Return two scenes of one object each that differ in shape, color and location."""
    while True:
        first, second = (sample_scene(rng, split=split, num_objects=1) for _ in range(2))
        if all(getattr(first.object, k) is not getattr(second.object, k) for k in ("shape", "color", "location")):
            return first, second


@dataclass(frozen=True)
class PageImage:
    """An image of a page, the index of its matched sentence, and their similarity (CLIP's scale: 0.1 to 0.4)."""

    scene: Scene
    sentence: int
    similarity: float


@dataclass(frozen=True)
class Page:
    """Sentences, and images that follow some of them."""

    sentences: tuple[str, ...]
    images: tuple[PageImage, ...]


_FILLERS = (
    "welcome to our page about shapes.",
    "shapes are fun to draw and to color.",
    "you can make these pictures at home.",
    "all you need is paper and a pencil.",
    "the next picture is one of our favorites.",
    "many people ask us how it is done.",
    "please tell your friends about this page.",
    "we add new pictures every week.",
    "look closely at the colors.",
    "thank you for reading.",
)


def sample_page(rng: np.random.Generator, *, split: Split = Split.TRAIN) -> Page:
    """Return two or three images, each matched with the sentence that describes it, among unrelated sentences.

    One page in eight has an additional image that is matched with an unrelated sentence at a similarity below Emu's
    threshold of 0.32, which data preparation drops.
    """
    sentences: list[str] = []
    images: list[PageImage] = []
    for _ in range(int(rng.integers(2, 4))):
        if rng.random() < 0.6:
            sentences.append(choose(rng, _FILLERS))
        scene = sample_scene(rng, split=split)
        images.append(PageImage(scene, len(sentences), float(rng.uniform(0.33, 0.42))))
        sentences.append(f"{caption(scene, rng)}.")
    if rng.random() < 0.4:
        sentences.append(choose(rng, _FILLERS))
    if rng.random() < 1 / 8:
        images.append(PageImage(sample_scene(rng, split=split), len(sentences), float(rng.uniform(0.18, 0.30))))
        sentences.append(choose(rng, _FILLERS))
    return Page(tuple(sentences), tuple(images))
