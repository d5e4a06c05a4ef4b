"""Clips: one object moves between two neighbouring corners (WebVid's part of the drawn world)."""

import enum
import re
from dataclasses import dataclass, replace

import numpy as np

from emu_jax.demo.world.grammar import name
from emu_jax.demo.world.questions import Question, QuestionKind
from emu_jax.demo.world.rendering import CENTERS, JITTER, Jitter, draw, make_background, make_sprite
from emu_jax.demo.world.scenes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    SIZES,
    Background,
    Object,
    Place,
    Split,
    choose,
    is_held_out,
)
from emu_jax.typing import UInt8, typechecked


class Direction(enum.Enum):
    LEFT = "left"
    RIGHT = "right"
    UP = "up"
    DOWN = "down"


DIRECTIONS = tuple(Direction)
_PATHS = {
    Direction.RIGHT: ((Place.TOP_LEFT, Place.TOP_RIGHT), (Place.BOTTOM_LEFT, Place.BOTTOM_RIGHT)),
    Direction.LEFT: ((Place.TOP_RIGHT, Place.TOP_LEFT), (Place.BOTTOM_RIGHT, Place.BOTTOM_LEFT)),
    Direction.UP: ((Place.BOTTOM_LEFT, Place.TOP_LEFT), (Place.BOTTOM_RIGHT, Place.TOP_RIGHT)),
    Direction.DOWN: ((Place.TOP_LEFT, Place.BOTTOM_LEFT), (Place.TOP_RIGHT, Place.BOTTOM_RIGHT)),
}
_TEMPLATES = (
    "a {thing} moving {direction} on a {background} background",
    "on a {background} background, a {thing} moving {direction}",
    "a {thing} moves {direction}, the background is {background}",
)


@dataclass(frozen=True)
class Clip:
    """`start` and `end` are one object in two places."""

    start: Object
    end: Object
    direction: Direction
    background: Background


def sample_clip(rng: np.random.Generator, *, split: Split = Split.TRAIN) -> Clip:
    """A random clip. In TRAIN neither start nor end is held out, in HELD_OUT one is, in TEST half the time."""
    held_out = split is Split.HELD_OUT or (split is Split.TEST and rng.random() < 0.5)
    while True:
        direction = choose(rng, DIRECTIONS)
        first, last = choose(rng, _PATHS[direction])
        start = Object(choose(rng, SHAPES), choose(rng, COLORS), choose(rng, SIZES), first)
        end = replace(start, place=last)
        if held_out == (is_held_out(start) or is_held_out(end)):
            return Clip(start, end, direction, choose(rng, BACKGROUNDS))


@typechecked
def render_clip(
    clip: Clip, rng: np.random.Generator, *, size: int = 32, num_frames: int = 4, jitter: Jitter = JITTER
) -> UInt8[np.ndarray, "T H W 3"]:
    """The frames of a clip, evenly spaced from its start to its end; tint, scale and offset stay, noise is fresh."""
    background = make_background(clip.background, rng, jitter=jitter)
    sprite = make_sprite(clip.start, rng, jitter=jitter)
    step = np.subtract(CENTERS[clip.end.place], CENTERS[clip.start.place])
    frames = []
    for part in np.linspace(0.0, 1.0, num_frames):
        x, y = np.asarray(sprite.center) + part * step
        moved = replace(sprite, center=(float(x), float(y)))
        frames.append(draw((moved,), background, rng, size=size, noise=jitter.noise))
    return np.stack(frames)


def _way(direction: Direction) -> str:
    return f"to the {direction.value}" if direction in (Direction.LEFT, Direction.RIGHT) else direction.value


def clip_captions(clip: Clip) -> tuple[str, ...]:
    """All right captions of a clip."""
    return tuple(
        template.format(thing=name(clip.start), direction=_way(clip.direction), background=clip.background.value)
        for template in _TEMPLATES
    )


def clip_caption(clip: Clip, rng: np.random.Generator) -> str:
    """`"a large red circle moving to the right on a white background"`, or the like."""
    return choose(rng, clip_captions(clip))


def parse_direction(text: str) -> Direction | None:
    """The first direction that `text` names; None if it names none."""
    found = re.search(r"\b(left|right|up|down)\b", text.lower())
    return Direction(found.group(1)) if found else None


def clip_question(clip: Clip, rng: np.random.Generator) -> Question:
    """A question for the direction of motion."""
    item = choose(rng, (f"the {clip.start.shape.value}", f"the {clip.start.color.value} object", "the object"))
    question = choose(rng, (f"which way does {item} move?", f"in which direction does {item} move?"))
    return Question(QuestionKind.DIRECTION, question, clip.direction.value)
