"""Scenes of the synthetic shapes world, and the combinations of attributes that are held out of training.

A scene is one to three objects on a plain background. Everything is sampled from a `numpy.random.Generator`, so a seed
determines the world. Color, shape and location are held out *jointly*: 18 of the 120 triples never occur in training,
but every pair of two attributes does. A held-out object therefore tests composition and not memory.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Option = TypeVar("Option")


class Shape(enum.Enum):
    """Shapes of objects."""

    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    CROSS = "cross"


class Color(enum.Enum):
    """Colors of objects."""

    RED = "red"
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"
    PURPLE = "purple"
    CYAN = "cyan"


class Size(enum.Enum):
    """Sizes of objects."""

    SMALL = "small"
    LARGE = "large"


class Location(enum.Enum):
    """Locations of objects; the order of declaration is the reading order."""

    TOP_LEFT = "top left"
    TOP_RIGHT = "top right"
    BOTTOM_LEFT = "bottom left"
    BOTTOM_RIGHT = "bottom right"
    CENTER = "center"


class Background(enum.Enum):
    """Gray values of the background."""

    WHITE = "white"
    BLACK = "black"
    GRAY = "gray"


SHAPES = tuple(Shape)
COLORS = tuple(Color)
SIZES = tuple(Size)
LOCATIONS = tuple(Location)
BACKGROUNDS = tuple(Background)
QUADRANTS = LOCATIONS[:4]


class Split(enum.Enum):
    """TRAIN has no held-out object, HELD_OUT has one in each scene, TEST has one in half of the scenes."""

    TRAIN = "train"
    TEST = "test"
    HELD_OUT = "held out"


@dataclass(frozen=True)
class Object:
    """One object."""

    shape: Shape
    color: Color
    size: Size
    location: Location


@dataclass(frozen=True)
class Scene:
    """One to three objects in distinct locations, no two of the same color and shape.

    The center is only for scenes of one object.
    """

    objects: tuple[Object, ...]
    background: Background

    def __post_init__(self):
        locations = [item.location for item in self.objects]
        kinds = {(item.color, item.shape) for item in self.objects}
        if not 1 <= len(self.objects) <= 3:
            raise ValueError(f"a scene has one to three objects, got {len(self.objects)}")
        if len(set(locations)) < len(locations) or len(kinds) < len(locations):
            raise ValueError(f"objects must differ in location and in color and shape: {self.objects}")
        if len(locations) > 1 and Location.CENTER in locations:
            raise ValueError("only a scene of one object may use the center")

    @property
    def object(self) -> Object:
        """The one object of a one-object scene."""
        (only,) = self.objects
        return only


def is_held_out(item: Object) -> bool:
    """Return True if the (color, shape, location) of an object is held out of training.

    The rule is a Latin square and not a random draw, so that it never changes: at most one location per (color, shape),
    at most one shape per (color, location), at most two colors per (shape, location), three triples of each color.
    """
    color, shape, location = COLORS.index(item.color), SHAPES.index(item.shape), LOCATIONS.index(item.location)
    return location == (color + 2 * shape) % len(LOCATIONS) and (color + shape) % len(SHAPES) != 3


def has_held_out(scene: Scene) -> bool:
    """Return True if an object of `scene` is held out of training."""
    return any(is_held_out(item) for item in scene.objects)


HELD_OUT = tuple(
    (color, shape, location)
    for color in COLORS
    for shape in SHAPES
    for location in LOCATIONS
    if is_held_out(Object(shape, color, Size.SMALL, location))
)


def choose(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """Return one of `options`, uniformly. Unlike `rng.choice` it does not convert them to an array."""
    return options[int(rng.integers(len(options)))]


def _sample_object(rng: np.random.Generator, *, locations: Sequence[Location], held_out: bool) -> Object:
    if held_out:
        color, shape, location = choose(rng, [triple for triple in HELD_OUT if triple[2] in locations])
        return Object(shape, color, choose(rng, SIZES), location)
    while True:
        item = Object(choose(rng, SHAPES), choose(rng, COLORS), choose(rng, SIZES), choose(rng, locations))
        if not is_held_out(item):
            return item


def sample_scene(rng: np.random.Generator, *, split: Split = Split.TRAIN, num_objects: int | None = None) -> Scene:
    """Return a random scene of `split`.

    Without `num_objects` it has one, two or three objects with probabilities 0.7, 0.2 and 0.1. A held-out scene has
    exactly one held-out object; the others are combinations of the training split.
    """
    count = num_objects or 1 + int(np.searchsorted([0.7, 0.9], rng.random(), side="right"))
    held_out = split is Split.HELD_OUT or (split is Split.TEST and rng.random() < 0.5)
    free = list(LOCATIONS if count == 1 else QUADRANTS)
    objects: list[Object] = []
    while len(objects) < count:
        item = _sample_object(rng, locations=free, held_out=held_out and not objects)
        if all((item.color, item.shape) != (other.color, other.shape) for other in objects):
            objects.append(item)
            free.remove(item.location)
    objects.sort(key=lambda item: LOCATIONS.index(item.location))
    return Scene(tuple(objects), choose(rng, BACKGROUNDS))
