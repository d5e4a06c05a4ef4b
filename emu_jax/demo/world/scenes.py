"""The drawn world: what can be in a picture, and which combinations a model never sees in training.

A scene is one to three objects on a plain background. Everything is drawn from a `numpy.random.Generator`, so a seed
gives the world. Colour, shape and place are held out *jointly*: of the 120 triples 18 are never in training, while
every pair of two attributes is, so that naming or drawing a held-out object wants composition and not memory.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Option = TypeVar("Option")


class Shape(enum.Enum):
    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    CROSS = "cross"


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"
    PURPLE = "purple"
    CYAN = "cyan"


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Place(enum.Enum):
    """The declared order is the order in which objects are read and named."""

    TOP_LEFT = "top left"
    TOP_RIGHT = "top right"
    BOTTOM_LEFT = "bottom left"
    BOTTOM_RIGHT = "bottom right"
    CENTER = "center"


class Background(enum.Enum):
    WHITE = "white"
    BLACK = "black"
    GRAY = "gray"


SHAPES = tuple(Shape)
COLORS = tuple(Color)
SIZES = tuple(Size)
PLACES = tuple(Place)
BACKGROUNDS = tuple(Background)
QUADRANTS = PLACES[:4]


class Split(enum.Enum):
    """TRAIN has no held-out object, HELD_OUT one in each scene, TEST one in every second scene."""

    TRAIN = "train"
    TEST = "test"
    HELD_OUT = "held out"


@dataclass(frozen=True)
class Object:
    shape: Shape
    color: Color
    size: Size
    place: Place


@dataclass(frozen=True)
class Scene:
    """One to three objects in distinct places, no two of one colour and shape; the centre is for a lone object."""

    objects: tuple[Object, ...]
    background: Background

    def __post_init__(self):
        places = [item.place for item in self.objects]
        kinds = {(item.color, item.shape) for item in self.objects}
        if not 1 <= len(self.objects) <= 3:
            raise ValueError(f"a scene has one to three objects, got {len(self.objects)}")
        if len(set(places)) < len(places) or len(kinds) < len(places):
            raise ValueError(f"objects must differ in place and in colour and shape: {self.objects}")
        if len(places) > 1 and Place.CENTER in places:
            raise ValueError("only a lone object lies in the center")

    @property
    def object(self) -> Object:
        """The one object of a one-object scene."""
        (only,) = self.objects
        return only


def is_held_out(item: Object) -> bool:
    """Whether the (colour, shape, place) of an object is kept out of training.

    A Latin-square rule and not a random draw, so that it is the same for ever: at most one place per (colour, shape),
    at most one shape per (colour, place), at most two colours per (shape, place), three triples of each colour.
    """
    color, shape, place = COLORS.index(item.color), SHAPES.index(item.shape), PLACES.index(item.place)
    return place == (color + 2 * shape) % len(PLACES) and (color + shape) % len(SHAPES) != 3


def has_held_out(scene: Scene) -> bool:
    return any(is_held_out(item) for item in scene.objects)


HELD_OUT = tuple(
    (color, shape, place)
    for color in COLORS
    for shape in SHAPES
    for place in PLACES
    if is_held_out(Object(shape, color, Size.SMALL, place))
)


def choose(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """One of `options`, uniformly, without turning it into an array of strings as `rng.choice` does."""
    return options[int(rng.integers(len(options)))]


def _sample_object(rng: np.random.Generator, *, places: Sequence[Place], held_out: bool) -> Object:
    if held_out:
        color, shape, place = choose(rng, [triple for triple in HELD_OUT if triple[2] in places])
        return Object(shape, color, choose(rng, SIZES), place)
    while True:
        item = Object(choose(rng, SHAPES), choose(rng, COLORS), choose(rng, SIZES), choose(rng, places))
        if not is_held_out(item):
            return item


def sample_scene(rng: np.random.Generator, *, split: Split = Split.TRAIN, num_objects: int | None = None) -> Scene:
    """A random scene of `split`; without `num_objects` one, two or three objects with chances 0.7, 0.2, 0.1.

    A held-out scene has one held-out object (any of its objects), the others are combinations seen in training.
    """
    count = num_objects or 1 + int(np.searchsorted([0.7, 0.9], rng.random(), side="right"))
    held_out = split is Split.HELD_OUT or (split is Split.TEST and rng.random() < 0.5)
    free = list(PLACES if count == 1 else QUADRANTS)
    objects: list[Object] = []
    while len(objects) < count:
        item = _sample_object(rng, places=free, held_out=held_out and not objects)
        if all((item.color, item.shape) != (other.color, other.shape) for other in objects):
            objects.append(item)
            free.remove(item.place)
    objects.sort(key=lambda item: PLACES.index(item.place))
    return Scene(tuple(objects), choose(rng, BACKGROUNDS))
