"""Clips: one object moves between two adjacent corners (the videos of the synthetic world, in WebVid's format)."""

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
    Location,
    Object,
    Split,
    choose,
    is_held_out,
)
from emu_jax.typing import UInt8, typechecked


class Direction(enum.Enum):
    """Directions of motion."""

    LEFT = "left"
    RIGHT = "right"
    UP = "up"
    DOWN = "down"


DIRECTIONS = tuple(Direction)
_PATHS = {
    Direction.RIGHT: ((Location.TOP_LEFT, Location.TOP_RIGHT), (Location.BOTTOM_LEFT, Location.BOTTOM_RIGHT)),
    Direction.LEFT: ((Location.TOP_RIGHT, Location.TOP_LEFT), (Location.BOTTOM_RIGHT, Location.BOTTOM_LEFT)),
    Direction.UP: ((Location.BOTTOM_LEFT, Location.TOP_LEFT), (Location.BOTTOM_RIGHT, Location.TOP_RIGHT)),
    Direction.DOWN: ((Location.TOP_LEFT, Location.BOTTOM_LEFT), (Location.TOP_RIGHT, Location.BOTTOM_RIGHT)),
}
_TEMPLATES = (
    "a {thing} moving {direction} on a {background} background",
    "on a {background} background, a {thing} moving {direction}",
    "a {thing} moves {direction}, the background is {background}",
)


@dataclass(frozen=True)
class Clip:
    """A moving object: `start` and `end` differ in location only."""

    start: Object
    end: Object
    direction: Direction
    background: Background


def sample_clip(rng: np.random.Generator, *, split: Split = Split.TRAIN) -> Clip:
    """Return a random clip.

    In TRAIN neither start nor end is held out, in HELD_OUT at least one is, in TEST at least one in half of the clips.
    """
    held_out = split is Split.HELD_OUT or (split is Split.TEST and rng.random() < 0.5)
    while True:
        direction = choose(rng, DIRECTIONS)
        first, last = choose(rng, _PATHS[direction])
        start = Object(choose(rng, SHAPES), choose(rng, COLORS), choose(rng, SIZES), first)
        end = replace(start, location=last)
        if held_out == (is_held_out(start) or is_held_out(end)):
            return Clip(start, end, direction, choose(rng, BACKGROUNDS))


@typechecked
def render_clip(
    clip: Clip, rng: np.random.Generator, *, size: int = 32, num_frames: int = 4, jitter: Jitter = JITTER
) -> UInt8[np.ndarray, "T H W 3"]:
    """Return evenly spaced frames from start to end. Tint, scale and offset are constant; each frame has new noise."""
    background = make_background(clip.background, rng, jitter=jitter)
    sprite = make_sprite(clip.start, rng, jitter=jitter)
    step = np.subtract(CENTERS[clip.end.location], CENTERS[clip.start.location])
    frames = []
    for fraction in np.linspace(0.0, 1.0, num_frames):
        x, y = np.asarray(sprite.center) + fraction * step
        moved = replace(sprite, center=(float(x), float(y)))
        frames.append(draw((moved,), background, rng, size=size, noise=jitter.noise))
    return np.stack(frames)


def _phrase(direction: Direction) -> str:
    return f"to the {direction.value}" if direction in (Direction.LEFT, Direction.RIGHT) else direction.value


def clip_captions(clip: Clip) -> tuple[str, ...]:
    """Return all correct captions of a clip."""
    return tuple(
        template.format(thing=name(clip.start), direction=_phrase(clip.direction), background=clip.background.value)
        for template in _TEMPLATES
    )


def clip_caption(clip: Clip, rng: np.random.Generator) -> str:
    """Return a caption such as "a large red circle moving to the right on a white background"."""
    return choose(rng, clip_captions(clip))


def parse_direction(text: str) -> Direction | None:
    """Return the first direction that `text` names, or None."""
    found = re.search(r"\b(left|right|up|down)\b", text.lower())
    return Direction(found.group(1)) if found else None


def clip_question(clip: Clip, rng: np.random.Generator) -> Question:
    """Return a question about the direction of motion."""
    item = choose(rng, (f"the {clip.start.shape.value}", f"the {clip.start.color.value} object", "the object"))
    question = choose(rng, (f"which way does {item} move?", f"in which direction does {item} move?"))
    return Question(QuestionKind.DIRECTION, question, clip.direction.value)
